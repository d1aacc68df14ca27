"""IBQ: index backpropagation, in which all codes move at every step through a soft choice among them.

Source: Shi et al. 2024, "Scalable Image Tokenization with Index Backpropagation Quantization" (arXiv:2412.02692).
"""

from vqkit.parts import Parts
from vqkit.parts.codebooks import NormalCodebook
from vqkit.parts.estimators import IndexBackpropagation
from vqkit.parts.losses import CodebookLoss, Commitment, DoubleQuantization, Entropy
from vqkit.parts.selection import Search


def ibq() -> Parts:
    """Choice by dot product; mse(quantized, z) + mse(z, sg e) + 0.25 mse(sg z, e) + 0.05 (H(p) - H(mean p)).

    Differs: no epsilon in the logarithm of mean p, which matters for many codes; see `Entropy`.
    """
    return Parts(
        codebook=NormalCodebook,
        search=Search("dot"),
        estimator=IndexBackpropagation(),
        losses=(DoubleQuantization(1.0), Commitment(1.0), CodebookLoss(0.25), Entropy(0.05)),
    )

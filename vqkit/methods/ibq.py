"""IBQ: index backpropagation, in which all codes move at every step through a soft choice among them.

Source: Shi et al. 2024, "Scalable Image Tokenization with Index Backpropagation Quantization" (arXiv 2412.02692).
"""

import torch
from torch import nn

from vqkit.codebooks import Codebook
from vqkit.estimators import IndexBackpropagation
from vqkit.losses import CodebookLoss, Commitment, DoubleQuantization, Entropy
from vqkit.parts import Parts
from vqkit.search import Search


class NormalCodebook(Codebook):
    """K trainable codes that start as N(0, 1): with smaller ones a soft choice has no gradient to pass on."""

    def _register_vectors(self, generator: torch.Generator) -> None:
        self.vectors = nn.Parameter(torch.randn(self.codebook_size, self.dim, generator=generator, dtype=torch.float32))


def ibq() -> Parts:
    """Choice by dot product; mse(quantized, z) + mse(z, sg e) + 0.25 mse(sg z, e) + 0.05 (H(p) - H(mean p))."""
    return Parts(
        codebook=NormalCodebook,
        search=Search("dot"),
        estimator=IndexBackpropagation(),
        losses=(DoubleQuantization(1.0), Commitment(1.0), CodebookLoss(0.25), Entropy(0.05)),
    )

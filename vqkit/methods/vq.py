"""Vector quantization with a codebook trained by gradient or by exponential moving averages.

Source: van den Oord, Vinyals, Kavukcuoglu 2017, "Neural Discrete Representation Learning" (arXiv:1711.00937).
"""

from vqkit.parts import Parts
from vqkit.parts.codebooks import Codebook, EMACodebook
from vqkit.parts.estimators import StraightThrough
from vqkit.parts.losses import CodebookLoss, Commitment
from vqkit.parts.maintenance import RandomRestart
from vqkit.parts.selection import Search


def vq() -> Parts:
    """Plain VQ: mse(sg z, e) + 0.25 mse(z, sg e), straight-through (eq. 3)."""
    return Parts(
        codebook=Codebook,
        search=Search("euclidean"),
        estimator=StraightThrough(),
        losses=(Commitment(0.25), CodebookLoss(1.0)),
    )


def ema() -> Parts:
    """VQ with codes that follow running means (appendix A.1), and dead codes restarted by the rule of Mimi
    (arXiv:2410.00037).

    Differs: appendix A.1 has no restarts; `maintenance=[]` gives it as published.
    """
    return Parts(
        codebook=EMACodebook,
        search=Search("euclidean"),
        estimator=StraightThrough(),
        losses=(Commitment(0.25),),
        maintenance=(RandomRestart(),),
    )

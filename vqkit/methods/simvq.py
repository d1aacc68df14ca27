"""SimVQ: a frozen random base under one trainable linear map, so that every code moves at every step.

Source: Zhu et al. 2024, "Addressing Representation Collapse in Vector Quantized Models with One Linear Layer"
(arXiv:2411.02038).
"""

from vqkit.parts import Parts
from vqkit.parts.codebooks import ProjectedCodebook
from vqkit.parts.estimators import StraightThrough
from vqkit.parts.losses import CodebookLoss, Commitment
from vqkit.parts.selection import Search


def simvq() -> Parts:
    """The parts of eq. 6: losses as plain VQ, whose codebook term alone reaches the linear map."""
    return Parts(
        codebook=ProjectedCodebook,
        search=Search("euclidean"),
        estimator=StraightThrough(),
        losses=(Commitment(0.25), CodebookLoss(1.0)),
    )

"""The five parts of a quantizer with a codebook, one file each.

codebooks.py: what the code vectors are. selection.py: which one is chosen. estimators.py: how gradients pass.
losses.py: what is penalised. maintenance.py: what happens to unused codes. part.py: what the stateless ones share.
compatibility.py: which of them work together, in one quantizer and in composites.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from vqkit.parts.codebooks import Codebook
from vqkit.parts.estimators import Estimator
from vqkit.parts.losses import Loss
from vqkit.parts.maintenance import Maintenance
from vqkit.parts.selection import Search


@dataclass(frozen=True)
class Parts:
    """The five parts of a published method.

    Attributes:
        codebook: from (codebook_size, dim) to a codebook. A factory, because a codebook has state and is never shared.
        search: which code is chosen.
        estimator: how gradients pass.
        losses: what is penalised.
        maintenance: what happens to unused codes, in this order.
        codebook_dim: the code dimension, if the method is about that; None for the `dim` of the input.
    """

    codebook: Callable[[int, int], Codebook]
    search: Search
    estimator: Estimator
    losses: Sequence[Loss] = field(default_factory=tuple)
    maintenance: Sequence[Maintenance] = field(default_factory=tuple)
    codebook_dim: int | None = None

"""Whitening by principal axes, fitted on a control set, before features are coded."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from vqkit.functional import eigen, negligible
from vqkit.precision import FullPrecisionModule, widened
from vqkit.runtime import autocast_disabled
from vqkit.saving.config import Configured


class PCAWhitening(Configured, FullPrecisionModule):
    """y = L^(-1/2) U^T (x - m), with the mean m and the covariance U L U^T of a control set; `inverse` goes back.

    Directions in which controls vary for no reason that matters (batches, illumination) are so brought to the size of
    all others, and an inner product weighs them alike.

    Args:
        dim: D.
        components: how many axes are kept, those of the largest variance; None for all D. Fewer make `inverse` a
            projection.
        shrinkage: s in [0, 1): variances are (1 - s) L + s mean(L) before their root is taken. Without any, axes that
            hold noise alone become as large as others, and axes without variance cannot be kept.

    State:
        mean: (D,) float32 buffer.
        axes: (components, D) float32 buffer, of unit length, rows.
        deviations: (components,) float32 buffer, what each axis is divided by.

    Raises:
        ValueError: an argument is out of its range.

    Source: ICFL, Donhauser et al. 2024 (arXiv:2412.16247), features whitened with a control set.
    Differs: the shrinkage; theirs is unseen by us.
    """

    mean: Tensor
    axes: Tensor
    deviations: Tensor

    def __init__(self, dim: int, *, components: int | None = None, shrinkage: float = 0.0) -> None:
        super().__init__()
        if dim < 1 or not 1 <= (kept := dim if components is None else components) <= dim:
            raise ValueError(f"dim={dim}, components={components}: expected 1 to dim axes, or None for all")
        if not 0 <= shrinkage < 1:
            raise ValueError(f"shrinkage={shrinkage}: expected a share in [0, 1), such as 0.01")
        self.dim, self.components, self.shrinkage = dim, kept, shrinkage
        self.register_buffer("mean", torch.zeros(dim, dtype=torch.float32))
        self.register_buffer("axes", torch.eye(kept, dim, dtype=torch.float32))
        self.register_buffer("deviations", torch.ones(kept, dtype=torch.float32))

    @torch.no_grad()
    def fit(self, control: Iterable[Tensor]) -> None:
        """Set mean, axes and deviations; sums are taken in float64 where the device has it.

        Args:
            control: batches (..., D) of finite features, which are held together.

        Raises:
            ValueError: there are too few features for the axes that are kept, or such axes have no variance, or a shape
                is wrong.
        """
        batches = [self._rows(batch) for batch in control]
        count = sum(map(len, batches))
        if count < 2 or (count <= self.components and not self.shrinkage):
            raise ValueError(
                f"control holds {count} features: expected more than {max(self.components, 1)}, one for each axis and "
                "one for the mean; give more, keep fewer components, or set shrinkage"
            )
        mean = torch.stack([widened(rows).sum(0) for rows in batches]).sum(0) / count
        centred = (widened(rows) - mean for rows in batches)
        covariance = torch.stack([rows.mT @ rows for rows in centred]).sum(0) / count
        variances, vectors = eigen(covariance)
        variances, vectors = variances.flip(0).clamp(min=0), vectors.flip(1)
        shrunk = (1 - self.shrinkage) * variances + self.shrinkage * variances.mean()
        if not float(shrunk[self.components - 1]) > negligible(shrunk.dtype, self.dim) * float(shrunk[0]):
            raise ValueError(
                f"control varies along {int((shrunk > negligible(shrunk.dtype, self.dim) * shrunk[0]).sum())} axes: "
                f"expected {self.components}; keep fewer components, or set shrinkage"
            )
        self.mean.copy_(mean)
        self.axes.copy_(vectors[:, : self.components].mT)
        self.deviations.copy_(shrunk[: self.components].sqrt())

    def forward(self, x: Tensor) -> Tensor:
        """Whitened features (..., components) of `x` (..., D), in float32, or in float64 if `x` is."""
        with autocast_disabled(x.device):
            centred = x - self.mean
            return (centred @ self.axes.mT.to(centred.dtype)) / self.deviations

    def inverse(self, y: Tensor) -> Tensor:
        """Features (..., D) of whitened ones (..., components)."""
        with autocast_disabled(y.device):
            scaled = y * self.deviations
            return scaled @ self.axes.to(scaled.dtype) + self.mean

    def _rows(self, batch: Any) -> Tensor:
        if not isinstance(batch, Tensor) or not batch.is_floating_point() or batch.shape[-1:] != (self.dim,):
            shape = tuple(batch.shape) if isinstance(batch, Tensor) else type(batch).__name__
            raise ValueError(f"control has a batch of {shape}: expected floating point, (..., {self.dim})")
        return batch.reshape(-1, self.dim)

    def extra_repr(self) -> str:
        """Sizes and the shrinkage."""
        return f"dim={self.dim}, components={self.components}, shrinkage={self.shrinkage}"

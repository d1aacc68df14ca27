"""Every quantizer that the contract holds for, with an input it takes. A new method appears here through `METHODS`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tests.contract.two_scale import TwoScaleQuantizer
from vqkit import FSQ, BaseQuantizer, Quantizer, ResidualQuantizer, RotationTrick, Search
from vqkit.methods import METHODS

DIM = 8


@dataclass(frozen=True)
class Case:
    """A quantizer and the shape of its input; `spatial` ones need images."""

    build: Callable[..., BaseQuantizer]
    spatial: bool = False
    trains_codebook: bool = True

    def example(self, batch: int = 3, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        """(B, T, D) rows, or (B, D, H, W) images for a spatial quantizer."""
        generator = torch.Generator().manual_seed(seed)
        shape = (batch, DIM, 4, 4) if self.spatial else (batch, 10, DIM)
        return torch.randn(shape, generator=generator, dtype=dtype)

    def positions(self, x: Tensor) -> torch.Size:
        return x[:, 0].shape if self.spatial else x[..., 0].shape


def stage(method: str = "vq", **options) -> Quantizer:
    return Quantizer(method, dim=DIM, codebook_size=16, **options)


CASES: dict[str, Case] = {
    **{name: Case(partial(Quantizer, name, dim=DIM, codebook_size=32)) for name in METHODS},
    "rotation": Case(partial(Quantizer, "vq", dim=DIM, codebook_size=32, estimator=RotationTrick())),
    "normalized": Case(partial(Quantizer, "ema", dim=DIM, codebook_size=32, normalize=True)),
    "factorized": Case(partial(Quantizer, "vq", dim=DIM, codebook_size=32, codebook_dim=4, search=Search("cosine"))),
    "fsq": Case(partial(FSQ, [4, 3, 5, 2, 2, 2, 2, 2]), trains_codebook=False),
    "fsq_projected": Case(partial(FSQ, [5, 5, 4], dim=DIM), trains_codebook=False),
    "residual": Case(partial(ResidualQuantizer, stage, 3)),
    "residual_dropout": Case(
        partial(ResidualQuantizer, partial(stage, "ema"), 3, dropout=0.7, estimator=RotationTrick())
    ),
    "residual_projected": Case(partial(ResidualQuantizer, partial(stage, codebook_dim=4), 2, estimator=None)),
    "two_scale": Case(partial(TwoScaleQuantizer, DIM, 16, 4, 4), spatial=True),
}

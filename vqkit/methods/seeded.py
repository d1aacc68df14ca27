"""A random codebook that is never trained: the baseline that every trained one has to beat."""

import torch
from torch import Tensor

from vqkit import distributed
from vqkit.functional import matching_map
from vqkit.parts import Parts
from vqkit.parts.codebooks import FrozenCodebook
from vqkit.parts.estimators import StraightThrough
from vqkit.parts.losses import Commitment
from vqkit.parts.selection import Search


class SeededCodebook(FrozenCodebook):
    """K codes drawn from N(0, 1) with a seed, and left there.

    What a trained codebook gains over this one is what its training is worth: the encoder alone can adapt. `initialize`
    gives the codes the mean and covariance of the data, so that the comparison is not one of scales.

    State:
        vectors: (K, D) float32 buffer.
        And usage as in `Codebook`.

    Args:
        codebook_size: K.
        dim: D.
        usage_decay: see `Codebook`.
        seed: of the codes.
    """

    def build_vectors(self, generator: torch.Generator) -> None:
        """Normal codes, as a buffer; see `Codebook`."""
        vectors = torch.randn(self.codebook_size, self.dim, generator=generator, dtype=torch.float32)
        self.register_buffer("vectors", vectors)

    @torch.no_grad()
    def initialize(self, samples: Tensor, *, vectors_per_step: int, seed: int) -> None:
        """Give the codes the mean and covariance of `samples` (M, D); see `Codebook`."""
        weight, bias = matching_map(self.vectors, samples)
        vectors = self.vectors.to(weight.dtype) @ weight.mT + bias
        self.vectors.copy_(distributed.from_first_rank(vectors))
        self.assume_uniform_usage(vectors_per_step)


def seeded() -> Parts:
    """A random table; 0.25 mse(z, sg e), straight-through: only the encoder learns."""
    return Parts(
        codebook=SeededCodebook,
        search=Search("euclidean"),
        estimator=StraightThrough(),
        losses=(Commitment(0.25),),
    )

"""Codes stored as whole numbers of 8 bits: what `vqkit.deployment.int8.to_int8` puts in the place of float32 tables."""

from functools import partial
from typing import ClassVar, Self

import torch
from torch import Tensor

from vqkit.parts.codebooks import Codebook, FrozenCodebook
from vqkit.runtime import autocast_disabled

LARGEST = 127
"""Of a level: -128 stays unused, so that a code and its mirror image are stored alike."""


class Int8Codebook(FrozenCodebook):
    """K codes e = s q of 8-bit levels q in -127 ... 127 and one scale s for the codebook, the largest entry over 127.

    An entry changes by at most s / 2. Search and decoding read the same product, of one rounding, so that it is the
    same on every machine. In a file a code takes D bytes in the place of 4 D; the running usage stays.

    State:
        levels: (K, D) int8 buffer.
        scales: (1, 1) float32 buffer.
        And usage as in `Codebook`; nothing is pending.

    Source: 8-bit centroids of GPTVQ, van Baalen et al. 2024 (arXiv:2402.15319).
    """

    per_code: ClassVar[tuple[str, ...]] = ("levels",)

    levels: Tensor
    scales: Tensor

    def __init__(self, codebook_size: int, dim: int, *, usage_decay: float = 0.99, seed: int = 0) -> None:
        super().__init__(codebook_size, dim, usage_decay=usage_decay, seed=seed)
        self.register_unsaved("pending_counts", partial(torch.zeros, codebook_size, dtype=torch.float32))

    def build_vectors(self, generator: torch.Generator) -> None:
        """Zeros, as buffers; see `Codebook`."""
        self.register_buffer("levels", torch.zeros(self.codebook_size, self.dim, dtype=torch.int8))
        self.register_buffer("scales", torch.ones(self.scaled_rows, 1, dtype=torch.float32))

    @property
    def scaled_rows(self) -> int:
        """How many scales there are."""
        return 1

    def forward(self) -> Tensor:
        """The codes (K, D); see `Codebook`."""
        return self.levels.to(self.scales.dtype) * self.scales

    def largest(self, vectors: Tensor) -> Tensor:
        """The largest absolute entry, () of all `vectors` (K, D)."""
        return vectors.abs().amax()

    def write(self, vectors: Tensor) -> None:
        """Round `vectors` (K, D) to levels; see `Codebook`.

        Raises:
            ValueError: a code is not finite: no scale holds it, and one for all would lose the others, too.
        """
        if not (finite := vectors.isfinite().all(1)).all():
            broken = torch.nonzero(~finite).flatten().tolist()
            raise ValueError(
                f"{len(broken)} of {len(vectors)} codes hold NaN or infinity, the first of them code {broken[0]}: "
                f"{type(self).__name__} cannot store them; nothing chooses them: leave them out (vqkit.surgery.prune)"
            )
        scales = self.largest(vectors) / LARGEST
        self.scales.copy_(torch.where(scales > 0, scales, 1))
        self.levels.copy_((vectors / self.scales).round().clamp(-LARGEST, LARGEST))

    @classmethod
    @torch.no_grad()
    def of(cls, codebook: Codebook) -> Self:
        """The codes of another codebook, rounded, with its usage.

        Raises:
            ValueError: it has a second table, by which codes are searched, or a code is not finite.
        """
        if codebook.cascaded or codebook.attention:
            raise ValueError(
                f"{cls.__name__}: {type(codebook).__name__} searches one table and reads another: leave it as "
                "`bake` stores it"
            )
        stored = cls(codebook.codebook_size, codebook.dim).to(codebook.usage)
        with autocast_disabled(codebook.usage.device):
            stored.write(codebook())
        stored.usage.copy_(codebook.usage)
        stored.steps, stored.refreshed_at = codebook.steps, codebook.refreshed_at
        return stored

    def table(self) -> Self:
        """Itself: it is one already."""
        return self


class RowScaledInt8Codebook(Int8Codebook):
    """`Int8Codebook` with a scale for each code: codes of very different lengths keep their digits.

    State:
        scales: (K, 1) float32 buffer.
        And that of `Int8Codebook`.
    """

    per_code = ("levels", "scales")

    @property
    def scaled_rows(self) -> int:
        """One for each code."""
        return self.codebook_size

    def largest(self, vectors: Tensor) -> Tensor:
        """The largest absolute entry, (K, 1) of each of `vectors` (K, D)."""
        return vectors.abs().amax(1, keepdim=True)

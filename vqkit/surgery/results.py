"""What an operation returns."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vqkit.indices import check_indices
from vqkit.quantizers.base import BaseQuantizer
from vqkit.surgery.maps import CodeMap


@dataclass(frozen=True)
class LevelReport:
    """Figures of one codebook.

    Attributes:
        before: K, codes of the old one.
        after: K', codes of the new one.
        distortion: mean squared distance per vector between an old code and the new one that it became, weighted by
            usage, in the space that is searched.
        relative_distortion: that, as a share of the weighted variance of the old codes; NaN where they do not vary.
        perplexity_before: 2^entropy of the usage.
        perplexity_after: of the usage that follows the map.
    """

    before: int
    after: int
    distortion: float
    relative_distortion: float
    perplexity_before: float
    perplexity_after: float

    def __str__(self) -> str:
        """In a line."""
        return (
            f"{self.before} -> {self.after} codes, perplexity {self.perplexity_before:.1f} -> "
            f"{self.perplexity_after:.1f}, distortion {self.distortion:.4g} ({self.relative_distortion:.2%})"
        )


@dataclass(frozen=True, eq=False)
class Surgery:
    """A quantizer with other codebooks, and what became of the old codes.

    Attributes:
        quantizer: of the same class as the old one, which stays as it was; it shares no memory with it.
        maps: one for each level.
        reports: one for each level.
        codebook_hash: of the old quantizer, as its token shards have it.
    """

    quantizer: BaseQuantizer
    maps: tuple[CodeMap, ...]
    reports: tuple[LevelReport, ...]
    codebook_hash: str

    def remap(self, indices: Tensor) -> Tensor:
        """New indices of the old quantizer's, without the data: those of `quantizer.encode` are nearer or equal.

        Args:
            indices: as the old quantizer's `encode` returns them; -1 stays -1.

        Returns:
            int64, of the same shape.
        """
        if not self.quantizer.level_axis:
            return self.maps[0](indices)
        check_indices(indices, [len(code_map.new) for code_map in self.maps], level_axis=True)
        levels = zip(self.maps, indices.unbind(-1), strict=False)  # a prefix of the levels will do
        return torch.stack([code_map(level) for code_map, level in levels], dim=-1)

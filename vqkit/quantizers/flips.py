"""Bits turned over at random, so that what follows learns to correct them."""

from torch import Tensor

from vqkit.parts.part import Part
from vqkit.parts.selection import Noise
from vqkit.quantizers.binary import BinaryQuantizer


class BitFlips(Part):
    """Each bit of a sample's scale is turned over with a probability that is drawn for it, uniform in [0, probability].

    Draws are a function of a seed, a step and the number of a sample among those of all ranks, if they hold as many
    each.

    Args:
        probability: the largest, in [0, 1]; 0.3 in the source.
        num_scales: the first so many scales are disturbed, 13 in the source; None: all.

    Source: Infinity, Han et al. 2024 (arXiv:2412.04431), sec. 3.4, algorithm 2.
    Differs: the released code draws the probability in whole percents, and once for a batch.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, probability: float = 0.3, *, num_scales: int | None = None) -> None:
        super().__init__()
        if not 0 <= probability <= 1:
            raise ValueError(f"probability={probability}: expected a number in [0, 1], 0.3 in the source")
        if num_scales is not None and num_scales < 1:
            raise ValueError(f"num_scales={num_scales}: expected at least 1, or None for all scales")
        self.probability = probability
        self.num_scales = num_scales

    def forward(self, stage: BinaryQuantizer, indices: Tensor, *, draw: int | Tensor, seed: int) -> Tensor:
        """Indices with some bits turned over; -1 stays.

        Args:
            stage: whose indices they are.
            indices: (B, *S[, levels]) int64.
            draw: the number of this draw, () int64 or an int.
            seed: of all draws.
        """
        batch, rows = len(indices), indices.reshape(-1, stage.num_codebooks)
        chance = Noise.of_step(seed, 2 * draw, batch, indices.device).uniform(1) * self.probability
        drawn = Noise.of_step(seed, 2 * draw + 1, len(rows), indices.device).uniform(stage.bits)
        cells = indices.shape[1:].numel() // stage.num_codebooks
        turned = drawn.view(batch, cells, stage.bits) < chance.unsqueeze(-1)
        return stage.turn(rows, turned.view(len(rows), stage.bits)).reshape(indices.shape)

"""Lookup-free quantization: the sign of each dimension."""

from collections.abc import Sequence

from torch import Tensor

from vqkit.parts.losses import Commitment, Loss
from vqkit.quantizers.binary import LARGEST_INDEX_BITS, BinaryQuantizer
from vqkit.quantizers.bit_entropy import BitEntropy


class LFQ(BinaryQuantizer):
    """Lookup-free quantization: y = sign(z), one bit per dimension, and no codebook whatever its size.

    The first dimension is the lowest bit of the index, as in Open-MAGVIT2. sign(0) is -1. The gradient is passed on as
    it is (straight-through). The losses make it work: the commitment keeps z near +-1, and the entropy makes each bit
    decided and all patterns equally used.

    Args:
        bits: D, the number of dimensions and bits, in 1 ... 62: 2^bits codes.
        dim: size of the input's channel axis; None means `bits`. If it differs, linear maps lead in and out.
        losses: penalties; None means `[Commitment(0.25), BitEntropy(0.1)]`.
        channel_dim: see `BaseQuantizer`.

    Source: MAGVIT-v2, Yu et al. 2023, "Language Model Beats Diffusion" (arXiv:2310.05737), sec. 3.1, eq. 3 to 5;
    weights as in Open-MAGVIT2, Luo et al. 2024 (arXiv:2409.04410).
    Differs: the commitment is a mean over dimensions. The entropy of the batch is over all ranks, and over groups of 9
    bits: `BitEntropy`. The forward value is the code exactly.

    Raises:
        ValueError: `bits` is out of its range.
        IncompatibleParts: a loss needs a codebook, or two have one name.
    """

    entry_size = 1.0
    lowest_bit_first = True

    def __init__(
        self,
        bits: int,
        *,
        dim: int | None = None,
        losses: Sequence[Loss] | None = None,
        channel_dim: int = -1,
    ) -> None:
        if isinstance(bits, int) and bits > LARGEST_INDEX_BITS:
            raise ValueError(
                f"bits={bits}: an int64 index holds at most {LARGEST_INDEX_BITS}; use GroupedQuantizer of several LFQ, "
                "or BSQ, which gives several indices"
            )
        super().__init__(
            bits,
            dim=dim,
            losses=[Commitment(0.25), BitEntropy(0.1)] if losses is None else losses,
            channel_dim=channel_dim,
        )
        self.register_watched()

    def direction(self, latents: Tensor) -> Tensor:
        """The vectors as they are."""
        return latents

    def surrogate(self, z: Tensor) -> Tensor:
        """z: the gradient is passed on as it is."""
        return z

    def watch(self, latents: Tensor, bits: Tensor, valid: Tensor) -> None:
        """Saturated latents, too; see `BinaryQuantizer`."""
        super().watch(latents, bits, valid)
        self.watch_rows(latents, valid)

    def health(self) -> dict[str, float]:
        """The share of `saturated` latents; see `BaseQuantizer`."""
        saturated = self.share_beyond()
        if saturated > 0.5:
            self.warn_once(
                "saturation",
                f"{saturated:.0%} of the latents lie beyond 3, where the codes are +-1 and a gradient hardly ever "
                "turns a bit: normalise the encoder's output, raise the weight of Commitment, or call "
                "initialize(latents) with a projection (dim != bits)",
            )
        return super().health() | {"saturated": saturated}


class MSBFirstLFQ(LFQ):
    """`LFQ` whose first dimension is the highest bit of the index, as in vector-quantize-pytorch."""

    lowest_bit_first = False

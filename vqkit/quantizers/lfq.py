"""Lookup-free quantization: the sign of each dimension."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from vqkit.parts.losses import Commitment, Loss
from vqkit.quantizers.binary import LARGEST_INDEX_BITS, BinaryQuantizer
from vqkit.quantizers.bit_entropy import BitEntropy


class LFQ(BinaryQuantizer):
    """Lookup-free quantization: y = sign(z), one bit per dimension, and no codebook whatever its size.

    sign(0) is -1. The gradient is passed on as it is (straight-through). The losses make it work: the commitment keeps
    z near +-1, and the entropy makes each bit decided and all patterns equally used.

    Args:
        bits: D, the number of dimensions and bits, in 1 ... 62: 2^bits codes.
        dim: size of the input's channel axis; None means `bits`. If it differs, linear maps lead in and out.
        bit_order: whether the first dimension is the lowest bit of the index ("lsb_first", as in Open-MAGVIT2) or the
            highest ("msb_first", as in vector-quantize-pytorch).
        losses: penalties; None means `[Commitment(0.25), BitEntropy(0.1)]`.
        channel_dim: see `BaseQuantizer`.

    Source: MAGVIT-v2, Yu et al. 2023, "Language Model Beats Diffusion" (arXiv:2310.05737), sec. 3.1, eq. 3 to 5;
    weights as in Open-MAGVIT2, Luo et al. 2024 (arXiv:2409.04410).
    Differs: the commitment is a mean over dimensions. The entropy of the batch is over all ranks, and over groups of 9
    bits: `BitEntropy`. The forward value is the code exactly.

    Raises:
        ValueError: `bits` is out of its range, or another bit order.
        IncompatibleParts: a loss needs a codebook, or two have one name.
    """

    entry_size = 1.0

    saturated: Tensor

    def __init__(
        self,
        bits: int,
        *,
        dim: int | None = None,
        bit_order: Literal["lsb_first", "msb_first"] = "lsb_first",
        losses: Sequence[Loss] | None = None,
        channel_dim: int = -1,
    ) -> None:
        if isinstance(bits, int) and bits > LARGEST_INDEX_BITS:
            raise ValueError(
                f"bits={bits}: an int64 index holds at most {LARGEST_INDEX_BITS}; use GroupedQuantizer of several LFQ, "
                "or BSQ, which gives several indices"
            )
        if bit_order not in ("lsb_first", "msb_first"):
            raise ValueError(f"bit_order={bit_order!r}: expected 'lsb_first' or 'msb_first'")
        super().__init__(
            bits,
            dim=dim,
            lsb_first=bit_order == "lsb_first",
            losses=[Commitment(0.25), BitEntropy(0.1)] if losses is None else losses,
            channel_dim=channel_dim,
        )
        self.bit_order = bit_order
        self.register_buffer("saturated", torch.zeros((), dtype=torch.float32), persistent=False)

    def direction(self, latents: Tensor) -> Tensor:
        """The vectors as they are."""
        return latents

    def surrogate(self, z: Tensor) -> Tensor:
        """z: the gradient is passed on as it is."""
        return z

    def watch(self, latents: Tensor, bits: Tensor, valid: Tensor) -> None:
        """Saturated latents, too; see `BinaryQuantizer`."""
        super().watch(latents, bits, valid)
        self.saturated.copy_(self.share_beyond(latents, valid))

    def health(self) -> dict[str, float]:
        """The share of `saturated` latents; see `BaseQuantizer`."""
        saturated = float(self.saturated)
        if saturated > 0.5:
            self.warn_once(
                "saturation",
                f"{saturated:.0%} of the latents lie beyond 3, where the codes are +-1 and a gradient hardly ever "
                "turns a bit: normalise the encoder's output, raise the weight of Commitment, or call "
                "initialize(latents) with a projection (dim != bits)",
            )
        return super().health() | {"saturated": saturated}

    def extra_repr(self) -> str:
        """Bits, their order and the layout."""
        return f"{super().extra_repr()}, bit_order={self.bit_order!r}"

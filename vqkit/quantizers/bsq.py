"""Binary spherical quantization: the sign of each dimension of a unit vector."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vqkit.parts.losses import Loss
from vqkit.quantizers.binary import BinaryQuantizer
from vqkit.quantizers.bit_entropy import BitEntropy

_SHORTEST = 1e-12


class BSQ(BinaryQuantizer):
    """Binary spherical quantization: u = z / |z|, y = sign(u) / sqrt(D), one bit per dimension, codes of unit length.

    With g the gradient of y, that of u is g / sqrt(D): the released code goes straight through the sign, then scales.
    `TextbookBSQ` goes straight through both. sign(0) is -1. A vector shorter than 1e-12 has no direction and is taken
    as it is. The error |u - y| is at most sqrt(2 - 2 / sqrt(D)). Any width: up to 62 bits make one index, more make
    several (`level_axis`), of widths that differ by at most 1.

    Args:
        bits: D, the number of dimensions and bits, at least 1; 18 and 36 in the paper.
        dim: size of the input's channel axis; None means `bits`. If it differs, linear maps lead in and out.
        losses: penalties; None means `[BitEntropy(0.1, temperature=1.0)]`.
        channel_dim: see `BaseQuantizer`.

    Source: Zhao et al. 2024, "Image and Video Tokenization with Binary Spherical Quantization" (arXiv:2406.07548), sec.
    3.2 and 3.3; gamma_0 = gamma = zeta = 1, temperature 1 and weight 0.1 as in the released configurations, which have
    no commitment (beta = 0), single bits or 9 to a group, and triple weight over the first 2,000 steps.
    Differs: the released code sums bits times powers of two in float32, so that its indices are wrong from about 25
    bits; these are integers. The first dimension is the highest bit, as published. The published commitment is a sum
    over dimensions and `Commitment` a mean: for a weight of beta add `Commitment(beta * D)`.

    Raises:
        ValueError: `bits` is not positive.
        IncompatibleParts: a loss needs a codebook, or two have one name.
    """

    def __init__(
        self,
        bits: int,
        *,
        dim: int | None = None,
        losses: Sequence[Loss] | None = None,
        channel_dim: int = -1,
    ) -> None:
        super().__init__(
            bits,
            dim=dim,
            losses=[BitEntropy(0.1, temperature=1.0)] if losses is None else losses,
            channel_dim=channel_dim,
        )
        self.entry_size = 1 / math.sqrt(bits)

    def direction(self, latents: Tensor) -> Tensor:
        """The unit vectors z / |z|."""
        length = torch.linalg.vector_norm(latents, dim=-1, keepdim=True)
        return latents / torch.where(length > _SHORTEST, length, 1)

    def surrogate(self, z: Tensor) -> Tensor:
        """The unit vectors over sqrt(D)."""
        return z * self.entry_size


class TextbookBSQ(BSQ):
    """`BSQ` with the straight-through estimator over the whole quantizer: the gradient of u is that of y as it is."""

    def surrogate(self, z: Tensor) -> Tensor:
        """The unit vectors as they are."""
        return z

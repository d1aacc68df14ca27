"""FVQ: a small transformer over the whole codebook (VQBridge), so that every code moves at every step.

Source: Chang et al. 2025, "Scalable Training for Vector-Quantized Networks with 100% Codebook Utilization"
(arXiv:2509.10140).
"""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqkit import distributed
from vqkit.functional import eigen, matching_map, negligible
from vqkit.parts import Parts
from vqkit.parts.codebooks import ProjectedCodebook
from vqkit.parts.estimators import StraightThrough
from vqkit.parts.losses import CodebookLoss, Commitment
from vqkit.parts.selection import Search
from vqkit.precision import widest_dtype

_EPSILON = 1e-6  # of the layer norms


class Block(nn.Module):
    """A transformer block with norms before its two halves, which have no weights of their own.

    Args:
        width: of a token.
        heads: of the attention; divides `width`.
        mlp_ratio: hidden width of the second half, in units of `width`.
        tanh_gelu: see `BridgedCodebook`.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: int, tanh_gelu: bool) -> None:
        super().__init__()
        self.heads = heads
        self.activation = nn.GELU(approximate="tanh" if tanh_gelu else "none")
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.expand = nn.Linear(width, mlp_ratio * width)
        self.contract = nn.Linear(mlp_ratio * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(T, width) -> (T, width)."""
        joined = self.query_key_value(_norm(tokens)).unflatten(-1, (3, self.heads, -1))
        query, key, value = joined.permute(1, 2, 0, 3).unsqueeze(1)
        attended = F.scaled_dot_product_attention(query, key, value)[0]
        tokens = tokens + self.attention_out(attended.transpose(0, 1).flatten(1))
        return tokens + self.contract(self.activation(self.expand(_norm(tokens))))


class Bridge(nn.Module):
    """From a table (K, D) to a table (K, D): compress to one token for each patch of the index grid, process, recover.

    Args:
        dim: D.
        grid: rows and columns of indices, each a multiple of `patch_size`; index k lies in row k // columns.
        patch_size: p.
        width: of a token.
        heads: of the attention.
        blocks: how many.
        mlp_ratio: see `Block`.
        tanh_gelu: see `BridgedCodebook`.
    """

    def __init__(
        self,
        dim: int,
        grid: tuple[int, int],
        patch_size: int,
        width: int,
        heads: int,
        blocks: int,
        mlp_ratio: int,
        tanh_gelu: bool,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.patch_size = patch_size
        self.compress = nn.Linear(patch_size**2 * dim, width)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio, tanh_gelu) for _ in range(blocks))
        self.recover = nn.Linear(width, patch_size**2 * dim)

    def forward(self, base: Tensor) -> Tensor:
        """(K, D) -> (K, D)."""
        return self.from_patches(self.recover(self.features(base)))

    def features(self, base: Tensor) -> Tensor:
        """What `recover` is given: (K, D) -> (K / p^2, width)."""
        tokens = self.compress(self.to_patches(base))
        for block in self.blocks:
            tokens = block(tokens)
        return _norm(tokens)

    def to_patches(self, table: Tensor) -> Tensor:
        """(K, D) -> (K / p^2, p^2 D)."""
        (rows, columns), p = self.grid, self.patch_size
        return table.reshape(rows // p, p, columns // p, p, -1).transpose(1, 2).reshape(rows * columns // p**2, -1)

    def from_patches(self, patches: Tensor) -> Tensor:
        """(K / p^2, p^2 D) -> (K, D)."""
        (rows, columns), p = self.grid, self.patch_size
        return patches.reshape(rows // p, columns // p, p, p, -1).transpose(1, 2).reshape(rows * columns, -1)


class BridgedCodebook(ProjectedCodebook):
    """K codes that a small transformer makes of a trained base, which it reads as an image of indices.

    Neighbouring indices share a patch, and patches attend to each other: a gradient to one code moves all. Indices must
    therefore keep their order: sorting or pruning belongs to the exported table. The bridge runs at every call, in eval
    mode as well; `vqkit.bake` replaces it by the table that it makes.

    State:
        base: (K, D) float32 parameter.
        projector: the bridge.
        And usage as in `Codebook`.

    Args:
        codebook_size: K, a multiple of patch_size^2.
        dim: D.
        patch_size: p, the side of a patch of indices; in the paper 4 for 16,384 codes and 8 for more.
        width: of a token; 256 is the paper's size L.
        heads: of the attention; divides `width`.
        blocks: transformer blocks, at least 0.
        mlp_ratio: hidden width of the second half of a block, in units of `width`.
        tanh_gelu: whether GELU is approximated by a hyperbolic tangent, as in the released code; exact in vqkit 0.1,
            which moves the codes by about 1e-4 of their length.
        usage_decay: see `Codebook`.
        seed: of the base and the bridge.

    Source: FVQ (arXiv:2509.10140): base U(+-1/K), pre-norm blocks without affine (epsilon 1e-6) and without positions,
    and a last layer of zeros, so that all codes are 0 until the first step, and the base gets a gradient from the
    second one on.
    Differs: the other layers start by the rule of Glorot and Bengio (2010) with zero biases. K need not be a square:
    the grid is the one nearest to a square. `initialize` replaces the start by one that has the mean and covariance of
    the data: a base of unit variance (at +-1/K one step of Adam would be larger than all of it), and a random last
    layer, whitened for each position in a patch and coloured by the data.

    Raises:
        ValueError: an argument is out of its range, or K is not a multiple of patch_size^2.
    """

    per_code: ClassVar[tuple[str, ...]] = ()

    projector: Bridge

    def __init__(
        self,
        codebook_size: int,
        dim: int,
        *,
        patch_size: int = 4,
        width: int = 256,
        heads: int = 4,
        blocks: int = 2,
        mlp_ratio: int = 2,
        tanh_gelu: bool = True,
        usage_decay: float = 0.99,
        seed: int = 0,
    ) -> None:
        sizes = {"patch_size": patch_size, "width": width, "heads": heads, "mlp_ratio": mlp_ratio}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name}={size}: expected at least 1")
        if blocks < 0:
            raise ValueError(f"blocks={blocks}: expected at least 0")
        if width % heads:
            raise ValueError(f"heads={heads}: expected a divisor of width={width}")
        self.patch_size = patch_size
        self.width = width
        self.heads = heads
        self.blocks = blocks
        self.mlp_ratio = mlp_ratio
        self.tanh_gelu = tanh_gelu
        super().__init__(codebook_size, dim, usage_decay=usage_decay, seed=seed)

    @property
    def decoding(self) -> str:
        """See `Quantizer`."""
        return f"heads={self.heads} tanh_gelu={self.tanh_gelu}"

    def build_vectors(self, generator: torch.Generator) -> None:
        """The base and the bridge; see `Codebook`."""
        grid = _grid(self.codebook_size, self.patch_size)
        unit_interval = torch.rand(self.codebook_size, self.dim, generator=generator, dtype=torch.float32)
        self.base = nn.Parameter((2 * unit_interval - 1) / self.codebook_size)
        self.projector = Bridge(
            self.dim, grid, self.patch_size, self.width, self.heads, self.blocks, self.mlp_ratio, self.tanh_gelu
        ).float()
        for module in self.projector.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)
        nn.init.zeros_(self.projector.recover.weight)

    def match_samples(self, samples: Tensor, seed: int) -> None:
        """Set base and last layer by the samples; see `ProjectedCodebook`."""
        bridge, positions, kind = self.projector, self.patch_size**2, widest_dtype(samples.device)
        self.base.div_(self.base.square().mean().sqrt())
        features = bridge.features(self.base).to(kind)
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(positions, self.dim, self.width, generator=generator, dtype=kind).to(features.device)
        mean = features.mean(0)
        centered = features - mean
        covariance = centered.mT @ centered / len(centered)
        weight = _whitener(drawn @ covariance @ drawn.mT) @ drawn
        # Few patches vary in few directions: their positions have to differ as well.
        few = positions * min(len(features) - 1, self.width) < self.dim
        offsets = drawn[:, :, 0] * few
        raw = torch.einsum("tw,pdw->tpd", centered, weight) + offsets
        color, shift = matching_map(raw.flatten(0, 1), samples)
        weight = distributed.from_first_rank(color @ weight)
        bias = distributed.from_first_rank(offsets @ color.mT + shift) - weight @ mean
        bridge.recover.weight.copy_(weight.flatten(0, 1))
        bridge.recover.bias.copy_(bias.flatten())

    def extra_repr(self) -> str:
        """Sizes and the form of the bridge."""
        rows, columns = self.projector.grid
        return f"{super().extra_repr()}, grid={rows} x {columns}, patch_size={self.patch_size}"


def fvq() -> Parts:
    """mse(sg z, e) + 0.25 mse(z, sg e), straight-through."""
    return Parts(
        codebook=BridgedCodebook,
        search=Search("euclidean"),
        estimator=StraightThrough(),
        losses=(Commitment(0.25), CodebookLoss(1.0)),
    )


def _norm(tokens: Tensor) -> Tensor:
    return F.layer_norm(tokens, tokens.shape[-1:], eps=_EPSILON)


def _grid(codebook_size: int, patch_size: int) -> tuple[int, int]:
    """Rows and columns of indices, each a multiple of `patch_size`, as nearly equal as can be."""
    patches, rest = divmod(codebook_size, patch_size**2)
    if rest:
        near = [number * patch_size**2 for number in (patches, patches + 1) if number]
        raise ValueError(
            f"codebook_size={codebook_size}: expected a multiple of patch_size^2 = {patch_size**2}, a grid of patches; "
            f"{' or '.join(map(str, near))} is nearest, or choose another patch_size"
        )
    rows = next(number for number in range(math.isqrt(patches), 0, -1) if patches % number == 0)
    return rows * patch_size, patches // rows * patch_size


def _whitener(covariances: Tensor) -> Tensor:
    """(..., D, D) symmetric -> (..., D, D): their inverse square roots, 0 where they have no spread."""
    variances, directions = eigen(covariances)
    least = negligible(variances.dtype, variances.shape[-1])
    spread = variances > least * variances[..., -1:].clamp(min=torch.finfo(variances.dtype).tiny)
    scales = torch.where(spread, variances, 1).rsqrt() * spread
    return (directions * scales.unsqueeze(-2)) @ directions.mT

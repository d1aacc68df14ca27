"""Projections of maps (B, H, W, dim) that look at the cells around each."""

import torch
from torch import Tensor, nn

from vqkit.backbones.swin2d import WindowedBlocks2d
from vqkit.quantizers.projected import Projection


class ConvProjection2d(Projection):
    """A convolution of a map, with zeros around it and in the place of what is not valid.

    Args:
        in_dim: channels that it takes.
        out_dim: channels that it gives.
        kernel_size: side of the kernel, odd.

    Raises:
        ValueError: `kernel_size` is not odd; in `forward`, the vectors are no map.
    """

    def __init__(self, in_dim: int, out_dim: int, *, kernel_size: int = 3) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size}: expected an odd number of cells, so that it has a middle")
        self.convolution = nn.Conv2d(in_dim, out_dim, kernel_size, padding=kernel_size // 2, dtype=torch.float32)

    def forward(self, vectors: Tensor, valid: Tensor) -> Tensor:
        """(B, H, W, in_dim) -> (B, H, W, out_dim)."""
        check_map(self, vectors)
        return _convolved(self.convolution, _cleared(vectors, valid))


class WindowProjection2d(Projection):
    """Attention inside of windows of a map, in residual groups of blocks, and a linear map of each cell.

    Each group is x + conv(blocks(x)), with a convolution of 3 x 3 and `depth` blocks whose windows are shifted in turn.
    What is not valid counts as zeros. A map that no whole number of windows covers is filled up below and at the right
    for each attention; what fills it below is attended to, what fills it at the right is not (`WindowAttention2d`).

    Args:
        in_dim: channels that it takes, and its width.
        out_dim: channels that it gives.
        num_groups: of blocks; 4 in AdaCode.
        depth: blocks of a group.
        num_heads: must divide `in_dim`.
        window_size: side of a window, in cells; even.
        mlp_ratio: width of the hidden layer relative to `in_dim`.

    Source: AdaCode, Liu et al. 2023 (arXiv:2306.06513), the released net in front of the weights, of which the defaults
    are; its blocks are those of Swin (Liu et al. 2021, arXiv:2103.14030), its groups those of SwinIR (Liang et al.
    2021, arXiv:2108.10257). How wide its hidden layer is we have not read: 4 is Swin's.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        num_groups: int = 4,
        depth: int = 6,
        num_heads: int = 8,
        window_size: int = 8,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        self.groups = nn.ModuleList(
            WindowedBlocks2d(in_dim, num_heads=num_heads, depth=depth, window_size=window_size, mlp_ratio=mlp_ratio)
            for _ in range(num_groups)
        )
        self.convolutions = nn.ModuleList(nn.Conv2d(in_dim, in_dim, 3, padding=1) for _ in range(num_groups))
        self.linear = nn.Linear(in_dim, out_dim)
        self.float()  # whatever the default is, as the quantizer around it

    def forward(self, vectors: Tensor, valid: Tensor) -> Tensor:
        """(B, H, W, in_dim) -> (B, H, W, out_dim)."""
        check_map(self, vectors)
        x = _cleared(vectors, valid)
        for blocks, convolution in zip(self.groups, self.convolutions, strict=True):
            x = x + _convolved(convolution, blocks(x))
        return self.linear(x)


def check_map(projection: Projection, vectors: Tensor) -> None:
    """Refuse vectors that are no map.

    Raises:
        ValueError: there are not two axes of cells.
    """
    if vectors.ndim != 4:
        raise ValueError(
            f"{type(projection).__name__} got vectors of shape {tuple(vectors.shape)}: expected a map (B, H, W, dim); "
            "use LinearProjection or AttentionProjection"
        )


def _cleared(vectors: Tensor, valid: Tensor) -> Tensor:
    return torch.where(valid.unsqueeze(-1), vectors, 0)


def _convolved(convolution: nn.Module, x: Tensor) -> Tensor:
    """A convolution of (B, H, W, channels)."""
    return convolution(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

"""Low-pass filters in front of strides, without which a shift of the image by a pixel changes what is seen."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Blur(nn.Module):
    """Filters each channel of maps by the binomial 1, 3, 3, 1 along both axes, behind a padding by zeros.

    Source: Zhang 2019 (arXiv:1904.11486), sec. 3.2.

    Args:
        padding: zeros on each side.
    """

    kernel: Tensor

    def __init__(self, padding: int) -> None:
        super().__init__()
        self.padding = padding
        weights = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("kernel", weights[:, None] * weights, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H + 2 padding - 3, W + 2 padding - 3)."""
        return self.filtered(F.pad(x, [self.padding] * 4))

    def filtered(self, padded: Tensor, *, stride: int = 1) -> Tensor:
        """The filter alone, at every stride-th place."""
        channels = padded.shape[1]
        return F.conv2d(padded, self.kernel.expand(channels, 1, 4, 4).to(padded.dtype), stride=stride, groups=channels)


class BlurPool(Blur):
    """The same at every second pixel, padded so that a side of n pixels becomes ceil(n / 2)."""

    def __init__(self) -> None:
        super().__init__(padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, ceil(H / 2), ceil(W / 2))."""
        height, width = x.shape[2:]
        return self.filtered(F.pad(x, (1, 1 + width % 2, 1, 1 + height % 2)), stride=2)

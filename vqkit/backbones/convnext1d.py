"""ConvNeXt blocks along time."""

import torch
from torch import Tensor, nn

from vqkit.backbones.sizes import check_positive
from vqkit.backbones.temporal import Interval
from vqkit.saving.config import Configured

NORM_EPS = 1e-6
WEIGHT_SPREAD = 0.02
"""Standard deviation of the first weights."""


class ConvNeXt1d(Configured, nn.Module):
    """A norm and ConvNeXt blocks that keep width and length; for `VocosDecoder(blocks=...)`.

    Args:
        channels: width C.
        num_layers: blocks.
        hidden_channels: inner width of a block; None: 3 C, as in Vocos.
        kernel_size: taps of the convolutions of each channel by itself; odd, so that they are centred.

    Attributes:
        causal: False.

    Raises:
        ValueError: if a size is not positive, or `kernel_size` is even.

    Source: Liu et al. 2022 (ConvNeXt, arXiv:2201.03545), as in Vocos (Siuzdak 2023, arXiv:2306.00814), section 3.2:
    8 blocks of 512 channels, 12 of 768 in WavTokenizer (Ji et al. 2024, arXiv:2408.16532).
    Differs: the norms have one scale and shift. Vocos and WavTokenizer have a row of them for each of four bandwidths;
    for one bandwidth that is the same.
    """

    causal = False

    def __init__(
        self, channels: int, *, num_layers: int = 8, hidden_channels: int | None = None, kernel_size: int = 7
    ) -> None:
        super().__init__()
        hidden_channels = 3 * channels if hidden_channels is None else hidden_channels
        check_positive(channels=channels, num_layers=num_layers, hidden_channels=hidden_channels)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size}: expected an odd number of taps, such as 7")
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)
        self.layers = nn.ModuleList(
            ConvNeXtBlock1d(channels, hidden_channels, kernel_size, 1 / num_layers) for _ in range(num_layers)
        )
        self.context_frames = num_layers * (kernel_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) to the same."""
        x = self.norm(x.mT).mT
        for layer in self.layers:
            x = layer(x)
        return x

    def reach(self, first: int, last: int) -> Interval:
        """Inputs on which the outputs `first` to `last` depend."""
        return first - self.context_frames, last + self.context_frames


class ConvNeXtBlock1d(nn.Module):
    """x + scale network(norm(convolution of each channel by itself)).

    Args:
        channels: width.
        hidden_channels: inner width of the network of two linear maps and GELU.
        kernel_size: taps, odd.
        scale: first value of the trainable factors of the branch.
    """

    def __init__(self, channels: int, hidden_channels: int, kernel_size: int, scale: float) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)
        self.network = nn.Sequential(
            nn.Linear(channels, hidden_channels), nn.GELU(), nn.Linear(hidden_channels, channels)
        )
        self.scale = nn.Parameter(torch.full((channels,), scale))
        for layer in (self.convolution, self.network[0], self.network[2]):
            start(layer)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, T) to the same."""
        frames = self.norm(self.convolution(x).mT)
        return x + (self.scale * self.network(frames)).mT


def start(layer: nn.Module) -> None:
    """Set the first weights of a convolution or a linear map as Vocos does: normal and cut off, no bias."""
    nn.init.trunc_normal_(layer.weight, std=WEIGHT_SPREAD)  # type: ignore[arg-type]
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

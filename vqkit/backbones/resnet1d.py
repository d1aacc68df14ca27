"""Residual blocks with group norms over a whole recording, and self-attention over all of it."""

from functools import partial

from torch import Tensor, nn

from vqkit.backbones.layers2d import Attention2d, zero
from vqkit.backbones.sizes import check_positive
from vqkit.saving.config import Configured

NORM_EPS = 1e-6


class ResidualBlocks1d(Configured, nn.Module):
    """Residual blocks that keep width and length; for `VocosDecoder(blocks=...)`.

    Their group norms are over all frames of a recording, so that every output depends on all of it: no block by block
    processing, and the sound of a cut recording is another one.

    Args:
        channels: width C.
        num_layers: blocks.
        dropout: probability before the second convolution of a block.
        norm_groups: groups of channels of each norm; must divide C.

    Attributes:
        causal: False.

    Raises:
        ValueError: if a size is not positive, or `norm_groups` does not divide C.

    Source: the blocks before and behind the transformer in the released decoder of X-Codec 2 (Ye et al. 2025,
    arXiv:2502.04128), which are those of `PositionNetwork`.
    Differs: branches start at zero, so that a block first passes its input on.
    """

    causal = False

    def __init__(self, channels: int, *, num_layers: int = 2, dropout: float = 0.1, norm_groups: int = 32) -> None:
        super().__init__()
        check_positive(num_layers=num_layers)
        check_groups(channels, norm_groups)
        self.layers = nn.Sequential(*(ResidualBlock1d(channels, norm_groups, dropout) for _ in range(num_layers)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) to the same."""
        return self.layers(x)


class PositionNetwork(Configured, nn.Module):
    """Two residual blocks, self-attention over all frames, two residual blocks, and a norm; of WavTokenizer's decoder.

    Every output depends on the whole recording, as in `ResidualBlocks1d`. Attention has one head, and its time grows
    with the square of the number of frames.

    Args:
        channels: width C.
        dropout: as in `ResidualBlocks1d`.
        norm_groups: as in `ResidualBlocks1d`.

    Attributes:
        causal: False.

    Raises:
        ValueError: as in `ResidualBlocks1d`.

    Source: Ji et al. 2024 (WavTokenizer, arXiv:2408.16532), section 3.3, and its released code.
    Differs: branches start at zero.
    """

    causal = False

    def __init__(self, channels: int, *, dropout: float = 0.1, norm_groups: int = 32) -> None:
        super().__init__()
        check_groups(channels, norm_groups)
        block = partial(ResidualBlock1d, channels, norm_groups, dropout)
        self.before = nn.Sequential(block(), block())
        self.attention = Attention2d(channels, norm=partial(nn.GroupNorm, norm_groups, eps=NORM_EPS), heads=1)
        self.after = nn.Sequential(block(), block())
        self.norm = nn.GroupNorm(norm_groups, channels, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) to the same."""
        x = self.before(x)
        x = self.attention(x.unsqueeze(-2)).squeeze(-2)  # frames as a map of one row
        return self.norm(self.after(x))


class ResidualBlock1d(nn.Module):
    """x + convolution(dropout(swish(norm(convolution(swish(norm(x))))))); the branch starts at zero.

    Args:
        channels: width.
        norm_groups: groups of channels of each norm.
        dropout: probability before the second convolution.
    """

    def __init__(self, channels: int, norm_groups: int, dropout: float) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.GroupNorm(norm_groups, channels, eps=NORM_EPS),
            nn.SiLU(),
            nn.Conv1d(channels, channels, 3, padding=1),
            nn.GroupNorm(norm_groups, channels, eps=NORM_EPS),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Conv1d(channels, channels, 3, padding=1),
        )
        zero(self.branch[-1])

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, T) to the same."""
        return x + self.branch(x)


def check_groups(channels: int, norm_groups: int) -> None:
    """Refuse groups that do not divide the width.

    Raises:
        ValueError: one of them is not positive, or they do not fit.
    """
    check_positive(channels=channels, norm_groups=norm_groups)
    if channels % norm_groups:
        raise ValueError(
            f"norm_groups={norm_groups} does not divide the width {channels}: choose a divisor of it, or another width"
        )

"""What EnCodec has between and behind the convolutions of its backbones: an LSTM, and a norm over time.

Source: Defossez et al. 2022 (arXiv:2210.13438), section 3.1.
"""

import torch
from torch import Tensor, nn

from vqkit.backbones.sizes import check_positive
from vqkit.backbones.streaming import StreamingLayer, check_same_stream
from vqkit.saving.config import Configured


class SkipLSTM(Configured, StreamingLayer):
    """x + LSTM(x) over time; for `ConvEncoder1d(transformer=...)`.

    A stream keeps its states, whose size does not depend on the length.

    Args:
        channels: width C, also of the states.
        num_layers: LSTMs one after the other, inside of one skip.

    Attributes:
        causal: True.

    Raises:
        ValueError: if a size is not positive.
    """

    causal = True

    def __init__(self, channels: int, *, num_layers: int = 2) -> None:
        super().__init__()
        check_positive(channels=channels, num_layers=num_layers)
        self.lstm = nn.LSTM(channels, channels, num_layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) to the same."""
        steps = x.permute(2, 0, 1)
        if self.stream is None:
            return x + self.lstm(steps)[0].permute(1, 2, 0)
        state = None
        if self.stream.past is not None:
            check_same_stream(self.stream.past, x, -1)
            hidden, cell = self.stream.past.permute(2, 0, 1).contiguous().chunk(2)
            state = hidden, cell
        outputs, state = self.lstm(steps, state)
        self.stream.past = torch.cat(state).permute(1, 2, 0)
        self.stream.seen += x.shape[-1]
        return x + outputs.permute(1, 2, 0)

    def reach(self, first: int, last: int) -> None:
        """None: an output depends on all that came before it."""


class TimeGroupNorm(Configured, nn.GroupNorm):
    """Mean 0 and variance 1 over channels and time together, then a scale and a bias for each channel.

    For `ConvEncoder1d(normalization=...)`, as in EnCodec for music at 48 kHz. It sees the whole recording (a second of
    it there), so that nothing with it is causal, and a recording in two parts gives something else than in one.

    Args:
        channels: C.

    Attributes:
        causal: False.
    """

    causal = False

    def __init__(self, channels: int) -> None:
        super().__init__(1, channels)

    def reach(self, first: int, last: int) -> None:
        """None: an output depends on all inputs."""

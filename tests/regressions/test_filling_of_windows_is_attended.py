"""Windowed attention fills a map to whole windows and attends to the filling: the last frames of a recording depend on
its length modulo the window, and so do their codes.

Seen in: ESC (compared, in float64: equal codes where windows fit, 8 to 16 % other codes in 11 frames).
Avoided since 0.1.0: what is filled in time is kept apart; frequencies, whose number is the model's own, are as
published.
"""

import torch

from tests.regressions.faults import both
from vqkit.backbones.swin2d import WindowAttention2d


class Attended(WindowAttention2d):
    """Masks what the shift brought together, as Swin does, and nothing else."""

    def _together(self, length: int, device: torch.device) -> torch.Tensor:
        return super()._together(length + -length % self.window_size, device)


def check(attention: type[WindowAttention2d], width: int, shift: int) -> None:
    """Of a map that is the same everywhere, attention makes one that is the same everywhere, of any width."""
    windows = attention(8, num_heads=2, window_size=4, shift=shift)
    torch.nn.init.normal_(windows.query_key_value.bias)
    result = windows(torch.randn(8).expand(1, 4, width, 8))
    torch.testing.assert_close(result, result[:, :1, :1].expand_as(result))


test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(
    check,
    sound=[(WindowAttention2d, width, shift) for width in [1, 4, 5, 10, 11] for shift in [0, 2]],
    faulty=[(Attended, width, shift) for width, shift in [(5, 0), (10, 0), (11, 2)]],
)

"""A decoder whose transposed convolutions have odd strides gives back fewer samples than it was given.

Seen in: DAC (ceil(stride / 2) samples are cut at both ends; issues 37 and 42, pull request 78; read), AGC (pull request
4; read).
Avoided since 0.1.0: outputs are cut to T stride, whatever the stride; what the encoder takes in front, the decoder cuts
in front.
"""

import math

import torch
from torch import Tensor, nn

from tests.regressions.faults import both
from vqkit.backbones.conv1d import ConvDecoder1d, ConvEncoder1d


class PaddedOnBothSides(nn.Module):
    """A stack of transposed convolutions that are cut by ceil(stride / 2) at both ends."""

    def __init__(self, dim: int, strides: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.ConvTranspose1d(dim, dim, 2 * stride, stride, math.ceil(stride / 2)) for stride in reversed(strides)),
            nn.Conv1d(dim, 1, 1),
        )

    def forward(self, latents: Tensor) -> Tensor:
        return self.layers(latents)


def check(decoder: nn.Module, strides: tuple[int, ...], causal: bool) -> None:
    encoder = ConvEncoder1d(dim=4, channels=4, strides=strides, causal=causal)
    for frames in (1, 2, 7):
        waves = torch.randn(1, 1, frames * math.prod(strides))
        lost = waves.shape[-1] - decoder(encoder(waves)).shape[-1]
        assert lost == 0, f"{lost} samples are lost"


def decoder(strides: tuple[int, ...], causal: bool) -> ConvDecoder1d:
    return ConvDecoder1d(dim=4, channels=4, strides=strides, causal=causal)


test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(
    check,
    sound=[
        *(
            (decoder(strides, causal), strides, causal)
            for strides in [(2, 4), (5,), (2, 4, 5), (3, 7)]
            for causal in [False, True]
        ),
        (PaddedOnBothSides(4, (2, 4)), (2, 4), False),
    ],
    faulty=[(PaddedOnBothSides(4, (2, 4, 5)), (2, 4, 5), False)],
    message="samples are lost",
)

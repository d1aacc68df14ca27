"""Chunks are encoded one by one as if each were a recording: the latents, and so the indices, depend on how a recording
was cut.

Seen in: DAC (issues 35 and 39: every chunk is padded anew; read), vllm-omni (pull request 4706: every chunk drops the
end of its samples; read).
Avoided since 0.1.0: in a stream causal layers go on where the chunk before ended; other models say in `context` how far
blocks must overlap.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.regressions.faults import both
from vqkit.backbones.conv1d import ConvEncoder1d
from vqkit.backbones.streaming import streaming


def streamed(encoder: ConvEncoder1d, chunks: tuple[Tensor, ...]) -> Tensor:
    with streaming(encoder):
        return torch.cat([encoder(chunk) for chunk in chunks], -1)


@torch.no_grad()
def one_by_one(encoder: ConvEncoder1d, chunks: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([encoder(chunk) for chunk in chunks], -1)


def check(encode: Callable[[ConvEncoder1d, tuple[Tensor, ...]], Tensor]) -> None:
    encoder = ConvEncoder1d(dim=8, channels=8, strides=(2, 3), causal=True)
    codebook = nn.functional.normalize(torch.randn(64, 8))
    waves = torch.randn(2, 1, 600)

    def indices(chunk_length: int) -> Tensor:
        return (codebook @ encode(encoder, waves.split(chunk_length, -1))).argmax(1)

    for chunk_length in (6, 18, 60, 96):
        assert torch.equal(indices(chunk_length), indices(600)), f"chunks of {chunk_length} samples differ"


test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(
    check, sound=[streamed], faulty=[one_by_one], message="chunks of 6 samples differ"
)

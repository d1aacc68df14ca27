"""Causal convolutions are padded by reflection: the first frames depend on samples that come after them, and a stream
cannot repeat what one pass gave.

Seen in: EnCodec 3837f0d (`modules/conv.py`, the default of causal layers too; read), audiolm-pytorch (issue 166; read).
Avoided since 0.1.0: causal layers have zeros in front, which is what a stream begins with.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqkit.backbones.conv1d import ConvDecoder1d, ConvEncoder1d
from vqkit.backbones.temporal import Convolution1d


class Reflected(Convolution1d):
    """Causal but for the reflection at the beginning."""

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(F.pad(x, (self.before, 0), mode="reflect"))


def check(model: nn.Module, hop: int) -> None:
    waves = torch.randn(1, 1, 40 * hop)
    for frame in range(1, 8):
        changed = torch.cat([waves[..., : frame * hop], torch.randn(1, 1, (40 - frame) * hop)], -1)
        with torch.no_grad():
            before, after = (model(signal)[..., : frame * hop] for signal in (waves, changed))
        assert torch.allclose(before, after, atol=1e-5, rtol=0), f"the first {frame} frames depend on later samples"


def build() -> nn.Sequential:
    options = {"dim": 8, "channels": 8, "strides": (2, 3), "causal": True}
    return nn.Sequential(ConvEncoder1d(**options), ConvDecoder1d(**options))


def test_vqkit_does_not_have_the_fault() -> None:
    check(build(), 6)


def test_the_check_catches_the_fault() -> None:
    model = build()
    for layer in model.modules():
        if type(layer) is Convolution1d:
            layer.__class__ = Reflected
    with pytest.raises(AssertionError, match="depend on later samples"):
        check(model, 6)

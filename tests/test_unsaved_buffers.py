"""Buffers that no state holds, in modules that were built on the meta device."""

import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from vqkit import CodebookUsage
from vqkit.backbones.antialiasing import HalfBand
from vqkit.backbones.complex_spectrum import ComplexSpectrum
from vqkit.backbones.swin2d import WindowAttention2d
from vqkit.parts.int8 import Int8Codebook

BUILDS: dict[str, Callable[[], nn.Module]] = {
    "window attention": lambda: WindowAttention2d(4, num_heads=2, window_size=3),
    "spectrum": lambda: ComplexSpectrum(9, window_length=12, hop_length=4),
    "half band": HalfBand,
    "usage": lambda: CodebookUsage(5),
    "rows of a codebook": lambda: Int8Codebook(7, 2).with_rows(torch.arange(3), lambda counts: counts[:3]),
}


def emptied(module: nn.Module) -> nn.Module:
    """As `to_empty`, in memory that is never by chance what it should be."""
    return module._apply(lambda tensor: torch.full_like(tensor, 3, device="cpu"))


@pytest.mark.parametrize("name", BUILDS)
def test_they_are_those_of_a_module_that_never_was_on_meta(name: str) -> None:
    reference = BUILDS[name]()
    with torch.device("meta"):
        module = BUILDS[name]()
    module.to(torch.float64)  # still on meta: there is nothing to make yet
    emptied(module).load_state_dict(reference.state_dict())
    expected = dict(reference.named_buffers())
    assert expected.keys() - reference.state_dict().keys()
    for key, buffer in module.named_buffers():
        assert torch.equal(buffer, expected[key].to(buffer.dtype)), key


def test_what_has_values_keeps_them() -> None:
    usage = CodebookUsage(5)
    usage.update(torch.tensor([1, 1, 4]))
    moved: Tensor = pickle.loads(pickle.dumps(usage)).to(torch.float64).counts
    assert moved.tolist() == [[0, 2, 0, 0, 1]]

"""How much memory the fused soft assignment takes at its largest size, by the allocations around its kernels."""

import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from vqkit.kernels import gpu

pytest.importorskip("triton")
fused = pytest.importorskip("vqkit.kernels.gpu.soft")


class Peak(TorchDispatchMode):
    """Most bytes alive at a time of what operations made."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and (key := tensor.untyped_storage()._cdata) not in self.known:
                size = tensor.untyped_storage().nbytes()
                self.known.add(key)
                self.alive += size
                self.most = max(self.most, self.alive)
                weakref.finalize(tensor.untyped_storage(), self._end, key, size)
        return result

    def _end(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.alive -= size


@pytest.fixture
def without_numbers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tensors with shapes only, for which an H200 is taken; kernels do not run."""
    monkeypatch.setattr(gpu, "launch", lambda *arguments, **options: None)
    monkeypatch.setattr(gpu, "architecture", lambda device: 90)
    monkeypatch.setattr(gpu, "multiprocessors", lambda device: 132)
    with FakeTensorMode():
        yield


@pytest.mark.usefixtures("without_numbers")
def test_memory_at_the_size_of_ibq() -> None:
    """K = 262144, D = 256, N = 16384: under 2 GiB beyond parameters, optimizer and outputs. N x K would be 16 GiB."""
    z, codes, weights = torch.empty(16384, 256), torch.empty(262144, 256), torch.empty(16384)
    indices, dmean = torch.empty(16384, dtype=torch.int64), torch.empty(262144)
    outputs = 4 * (z.numel() + codes.numel())
    most = {}
    for name, call in {
        "entropy": lambda: fused.assignment_entropy(z, codes, weights, 0.01),
        "entropy backward": lambda: fused.assignment_entropy_backward(weights, dmean, z, codes, weights, 0.01),
        "index backpropagation": lambda: fused.index_backpropagation_backward(z, z, codes, indices, 1.0),
    }.items():
        with Peak() as peak:
            call()
        most[name] = peak.most
    assert max(most.values()) < 2**30
    # One set of gradients is an output; while the second backward runs, those of the first are kept to be added.
    assert max(most.values()) + outputs < 2 * 2**30

"""Soft assignment with every N x K matrix written out: what the streamed operators are compared with."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vqkit.kernels import panels


def logits(z: Tensor, codes: Tensor, temperature: float, metric: str = "dot") -> Tensor:
    if metric == "dot":
        return z @ codes.T / temperature
    return -(z[:, None] - codes).square().sum(-1) / temperature


def index_backpropagation(z: Tensor, codes: Tensor, indices: Tensor, temperature: float = 1.0) -> Tensor:
    soft = logits(z, codes, temperature).softmax(1)
    hard = F.one_hot(indices.clamp(min=0), len(codes)).to(soft.dtype)
    return ((hard - soft.detach() + soft) @ codes) * (indices >= 0)[:, None]


def assignment_entropy(
    z: Tensor, codes: Tensor, temperature: float, metric: str, weights: Tensor
) -> tuple[Tensor, Tensor]:
    log_p = logits(z, codes, temperature, metric).log_softmax(1)
    per_sample = -(log_p.exp() * log_p).sum(1) * (weights > 0)
    return per_sample, weights @ log_p.exp() / weights.sum()


def leaves(*tensors: Tensor, dtype: torch.dtype | None = None) -> list[Tensor]:
    return [tensor.detach().to(dtype or tensor.dtype, copy=True).requires_grad_() for tensor in tensors]


def few_rows(monkeypatch, rows: int) -> None:
    """Several panels at every size."""
    monkeypatch.setattr(panels, "PANEL", 1)
    monkeypatch.setattr(panels, "FEWEST_ROWS", rows)


class Watch(TorchDispatchMode):
    """Records the dtypes of matrix products and the bytes of the largest tensor that an operation made (no views)."""

    def __init__(self) -> None:
        super().__init__()
        self.products: set[torch.dtype] = set()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in ("mm", "addmm", "addmm_", "bmm", "baddbmm", "addmv_"):
            self.products.update(arg.dtype for arg in args if isinstance(arg, Tensor))
        given = {tensor.untyped_storage().data_ptr() for tensor in args if isinstance(tensor, Tensor)}
        for tensor in result if isinstance(result, tuple) else (result,):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in given:
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        return result

"""The operators of soft assignment in one table: each beside its plain form, with its arguments and its rounding."""

from collections.abc import Callable, Sequence
from importlib import import_module  # `vqkit.kernels` has functions of the same names as the modules
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.kernels import soft_rounding
from tests.kernels.graphs import leaves
from vqkit.kernels import assignment_entropy, index_backpropagation, naive, reinmax

OPERATORS = ("index_backpropagation", "reinmax", "entropy, dot", "entropy, euclidean")
TENSOR_CORES = 10.0 if torch.cuda.is_available() else 1.0  # their sums truncate, by how much no vendor states
REGISTERED = OPERATORS[:3]  # the euclidean entropy is the other one, of other rows and codes


class Case(NamedTuple):
    """An operator and what it is given besides rows and codes.

    Attributes:
        call: from rows (N, D) and codes (K, D) to the results.
        plain: the same, materialized.
        errors: from rows, codes and gradients to the results, in float64, to bounds on the error of each entry of the
            results and of the gradients.
        upstream: gradients to the results.
        module: where the registered functions `_forward` and `_backward` are.
        operator: `torch.ops.vqkit.<operator>`.
        arguments: that these take after rows and codes.
    """

    call: Callable[[Tensor, Tensor], tuple[Tensor, ...]]
    plain: Callable[[Tensor, Tensor], tuple[Tensor, ...]]
    errors: Callable[..., list[Tensor]]
    upstream: list[Tensor]
    module: Any
    operator: str
    arguments: tuple


def case(name: str, z: Tensor, codes: Tensor, temperature: float = 0.5, left_out: Sequence[int] = ()) -> Case:
    """An operator for rows and codes of these shapes, on their device; some rows are left out."""
    (number, depth), size = z.shape, len(codes)
    kept = torch.ones(number, dtype=torch.bool)
    kept[list(left_out)] = False
    if name.startswith("entropy"):
        weights = (torch.rand(number) * kept).to(z.device)
        given: dict[str, Any] = {"temperature": temperature, "metric": name.removeprefix("entropy, ")}
        return Case(
            lambda z, codes: tuple(assignment_entropy(z, codes, weights=weights, **given)),
            lambda z, codes: naive.assignment_entropy(z, codes, weights=weights.double(), **given),
            soft_rounding.assignment_entropy(*given.values(), weights),
            [torch.randn(number, device=z.device), torch.randn(size, device=z.device)],
            import_module("vqkit.kernels.entropy"),
            "assignment_entropy",
            (weights / weights.sum(), temperature),
        )
    indices = torch.where(kept, torch.randint(size, (number,)), -1 - torch.arange(number)).to(z.device)
    function = {"reinmax": reinmax, "index_backpropagation": index_backpropagation}[name]
    given = {} if name == "reinmax" else {"temperature": temperature}
    return Case(
        lambda z, codes: (function(z, codes, indices, **given),),
        lambda z, codes: (getattr(naive, name)(z, codes, indices, **given),),
        getattr(soft_rounding, name)(indices, *given.values()),
        [torch.randn(number, depth, device=z.device)],
        import_module(f"vqkit.kernels.{name}"),
        name,
        (indices, *given.values()),
    )


def everything(call: Callable[..., Sequence[Tensor]], inputs: list[Tensor], upstream: Sequence[Tensor]) -> list[Tensor]:
    """Results of a call of leaves, and their gradients."""
    found = tuple(call(*inputs))
    upstream = [value.to(result.dtype) for value, result in zip(upstream, found, strict=True)]
    return [*found, *torch.autograd.grad(found, inputs, upstream)]


def assert_right(tested: Case, z: Tensor, codes: Tensor) -> None:
    """Results and gradients in float32, each to within its bound of the plain form in float64."""
    wide = leaves(z, codes, dtype=torch.float64)
    found, expected = (
        everything(tested.call, leaves(z, codes), tested.upstream),
        everything(tested.plain, wide, tested.upstream),
    )
    bounds = tested.errors(*(tensor.detach().double() for tensor in (*wide, *tested.upstream)))
    assert all(value.dtype == torch.float32 for value in found)
    soft_rounding.assert_within(found, expected, [(TENSOR_CORES if z.is_cuda else 1) * bound for bound in bounds])

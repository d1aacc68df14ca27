"""The expanded square |z|^2 + |e|^2 - 2 z e loses the codes where the data lie away from the origin.

Seen in: vector-quantize-pytorch 1.32.0 and `torch.cdist` (measured: 1.2 % wrong codes at an offset of 100 deviations,
72 % at 1,000), and every other released search.
Avoided since 0.1.0: `kernels.nearest` subtracts the mean code, and searches again in float64 the rows that float32
cannot decide.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from tests.regressions.faults import both
from vqkit.kernels import nearest


def expanded(x: Tensor, codes: Tensor) -> Tensor:
    return (x.square().sum(1, keepdim=True) + codes.square().sum(1) - 2 * x @ codes.T).argmin(1)


def half_expanded(x: Tensor, codes: Tensor) -> Tensor:
    return (0.5 * codes.square().sum(1) - x @ codes.T).argmin(1)


def library(x: Tensor, codes: Tensor) -> Tensor:
    return torch.cdist(x, codes, compute_mode="use_mm_for_euclid_dist").argmin(1)


def check(find: Callable[[Tensor, Tensor], Tensor], offset: float) -> None:
    x, codes = torch.randn(1500, 16) + offset, torch.randn(300, 16) + offset
    exact = torch.stack([(row - codes.double()).square().sum(1).argmin() for row in x.double()])
    assert torch.equal(find(x, codes), exact)


test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(
    check,
    sound=[(lambda x, codes: nearest(x, codes).indices, offset) for offset in [0.0, 10.0, 100.0, 1000.0]],
    faulty=[(find, 1000.0) for find in [expanded, half_expanded, library]],
)

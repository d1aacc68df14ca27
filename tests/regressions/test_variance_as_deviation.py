"""DiVeQ's noise variance is handed to a function that takes a standard deviation, so that the noise is 32 times too
short.

Seen in: DiVeQ's released code (read: `Normal(0, noise_var)`; measured: the value is off by 0.12 % of the error, where
the stated variance gives 8.6 %).
Avoided since 0.1.0: `DiVeQ(variance)` scales standard normal numbers by the root of the variance.
"""

import torch
from torch import Tensor

from tests.regressions.faults import both
from vqkit import DiVeQ, Estimator, Noise, Selection
from vqkit.functional import unit


class VarianceAsDeviation(DiVeQ):
    """Scales the noise by the variance itself."""

    def forward(self, selection: Selection) -> Tensor:
        assert selection.noise is not None
        offset = selection.selected - selection.z
        noise = self.variance * selection.noise.normal(offset.shape[1])
        return selection.z + offset.norm(dim=1, keepdim=True) * unit(noise + offset).detach()


def check(estimator: Estimator, variance: float) -> None:
    """Far from the code, the value differs from it by the noise across the error: in all dimensions but one."""
    count, dim = 4000, 5
    z = torch.zeros(count, dim, dtype=torch.float64)
    code = torch.zeros_like(z)
    code[:, 0] = 100
    noise = Noise(seed=torch.tensor(1), step=torch.tensor(0), first=0, count=count)
    indices = torch.zeros(count, dtype=torch.int64)
    value = estimator(Selection(z, z, code[:1], indices, code, indices == 0, noise))
    found = float((value - code)[:, 1:].square().mean())
    assert 0.9 < found / variance < 1.1, f"the noise has variance {found:.3g} instead of {variance}"


test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(
    check,
    sound=[(DiVeQ(variance), variance) for variance in [1e-3, 0.25]],
    faulty=[(VarianceAsDeviation(), 1e-3)],
    message="the noise has variance",
)

"""Two forwards, then one backward, under activation checkpointing: the recomputation of the first draws the noise of
the second, and its gradient belongs to another value than the loss.

Seen in: vqkit 0.1.0 (measured).
Avoided since 0.2.0: a recomputation finds the number of its forward by the vectors that it is given.
"""

from functools import partial

import torch
from torch.utils.checkpoint import checkpoint

from tests.regressions.faults import both
from vqkit import BaseQuantizer, Quantizer, ResidualQuantizer
from vqkit.runtime import ForwardNumbers, recomputing


class LastNumber(ForwardNumbers):
    """Takes each recomputation for one of the last forward."""

    def find(self, vectors: torch.Tensor, number: int) -> torch.Tensor:
        return torch.tensor(number)


def gradients(quantizer: BaseQuantizer, run) -> list[torch.Tensor]:
    inputs = [torch.randn(40, 4, generator=torch.Generator().manual_seed(seed)).requires_grad_() for seed in range(2)]

    def loss(x: torch.Tensor) -> torch.Tensor:
        output = quantizer(x)
        return output.quantized.square().sum() + output.loss

    sum(run(loss, x) for x in inputs).backward()
    return [x.grad for x in inputs]


def check(build, kind: type[ForwardNumbers]) -> None:
    found = []
    for run in (lambda function, x: function(x), partial(checkpoint, use_reentrant=False)):
        quantizer = build()
        for part in quantizer.modules():
            for name in {"_noise_steps", "_numbers"} & vars(part).keys():
                setattr(part, name, kind())
        found.append(gradients(quantizer, run))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True)), "other noise"


gumbel = partial(Quantizer, "gumbel", dim=4, codebook_size=8, auto_step=False)
residual = partial(ResidualQuantizer, partial(Quantizer, "vq", dim=4, codebook_size=8, auto_step=False), 3, dropout=0.9)


class OldestNumber(ForwardNumbers):
    """Takes, of forwards of the same vectors, the first."""

    def find(self, vectors: torch.Tensor, number: int) -> torch.Tensor:
        found = super().find(vectors, number)
        return self._seen[0][0] if recomputing() else found


def test_a_recomputation_of_vectors_that_were_there_before_is_of_the_last_step() -> None:
    """Frozen features show the same vectors at every step."""
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))

    def steps(run, kind: type[ForwardNumbers]) -> list[torch.Tensor]:
        quantizer, found = gumbel(), []
        quantizer._noise_steps = kind()
        for _ in range(3):
            leaf = x.clone().requires_grad_()
            run(lambda y: quantizer(y).quantized, leaf).square().sum().backward()
            found.append(leaf.grad)
            quantizer.step()
        return found

    plain = steps(lambda function, y: function(y), ForwardNumbers)
    recomputed = partial(checkpoint, use_reentrant=False)
    assert all(map(torch.equal, plain, steps(recomputed, ForwardNumbers)))
    assert not all(map(torch.equal, plain, steps(recomputed, OldestNumber)))


def test_forwards_on_other_devices_are_other_forwards() -> None:
    numbers = ForwardNumbers()
    numbers.find(torch.zeros(4, 2, device="meta"), 0)
    numbers.find(torch.zeros(4, 2), 1)
    assert int(numbers.find(torch.zeros(4, 2), 2)) == 2


test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(
    check,
    sound=[(gumbel, ForwardNumbers), (residual, ForwardNumbers)],
    faulty=[(gumbel, LastNumber), (residual, LastNumber)],
    message="other noise",
)

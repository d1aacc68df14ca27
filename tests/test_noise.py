"""The random numbers of a training forward: their distribution, and who is given the same ones."""

from functools import partial

import pytest
import torch
from torch import Tensor

from vqkit import NSVQ, Codebook, EMACodebook, GroupedQuantizer, Noise, Quantizer, RandomRestart, ResidualQuantizer


def noise(*, seed: int = 0, step: int = 0, first: int = 0, count: int = 1000) -> Noise:
    return Noise(seed=torch.tensor(seed), step=torch.tensor(step), first=first, count=count)


def test_uniform_numbers_lie_strictly_between_0_and_1(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = noise().uniform(50)
    assert drawn.shape == (1000, 50) and drawn.min() > 0 and drawn.max() < 1
    assert abs(drawn.mean() - 0.5) < 0.005 and abs(drawn.var() - 1 / 12) < 0.001
    for extreme in (0.0, 1 - 2.0**-53):
        monkeypatch.setattr(
            "vqkit.distributed.counter_random",
            lambda positions, value=extreme, **_: torch.full(positions.shape, value, dtype=torch.float64),
        )
        assert 0 < noise(count=1).uniform(1).item() < 1


def test_normal_numbers_are_normal_and_independent_of_the_uniform_ones() -> None:
    drawn, uniform = noise().normal(50), noise().uniform(50)
    assert abs(drawn.mean()) < 0.01 and abs(drawn.std() - 1) < 0.01
    assert abs((drawn**4).mean() - 3) < 0.1
    radius, angle = noise().uniform(100).chunk(2, dim=-1)
    assert torch.isclose(drawn, (-2 * radius.log()).sqrt() * (2 * torch.pi * angle).cos()).double().mean() < 0.01
    both = torch.stack([drawn.flatten(), uniform.flatten(), drawn.roll(1, 0).flatten(), drawn.roll(1, 1).flatten()])
    assert (both.corrcoef() - torch.eye(4)).abs().max() < 0.02


def test_rows_that_are_asked_for_again_are_the_same() -> None:
    whole = noise()
    assert torch.equal(whole.uniform(7, rows=slice(100, 200)), whole.uniform(7)[100:200])
    assert torch.equal(whole.normal(7, rows=slice(100, 200)), whole.normal(7)[100:200])


def test_two_ranks_draw_what_one_process_with_the_joined_batch_draws() -> None:
    joined = noise(count=20).normal(3)
    assert torch.equal(torch.cat([noise(first=0, count=10).normal(3), noise(first=10, count=10).normal(3)]), joined)


@pytest.mark.parametrize("other", [{"seed": 1}, {"step": 1}, {"first": 1}])
def test_other_seeds_steps_and_places_draw_other_numbers(other: dict[str, int]) -> None:
    assert not torch.isclose(noise(**other).uniform(5), noise().uniform(5)).any()


class Recording(NSVQ):
    """Keeps the numbers of each forward."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[Tensor] = []

    def forward(self, selection) -> Tensor:
        if selection.noise is not None:
            self.drawn.append(selection.noise.uniform(3))
        return super().forward(selection)


def recorded(*, auto_step: bool = True) -> tuple[Quantizer, Recording]:
    estimator = Recording()
    return Quantizer("nsvq", dim=4, codebook_size=8, estimator=estimator, auto_step=auto_step), estimator


@pytest.mark.parametrize("auto_step", [False, True])
def test_every_training_forward_draws_anew_and_no_other_draws(auto_step: bool) -> None:
    quantizer, estimator = recorded(auto_step=auto_step)
    x = torch.randn(6, 4)
    for _ in range(4):
        quantizer(x)
    assert len(estimator.drawn) == 4
    assert len(torch.stack(estimator.drawn).unique(dim=0)) == 4
    quantizer.encode(x)
    with torch.no_grad():
        quantizer(x)
    quantizer.eval()(x)
    assert len(estimator.drawn) == 4


MEMBER = partial(Quantizer, "diveq", dim=4, codebook_size=8)


@pytest.mark.parametrize(
    "composite",
    [
        ResidualQuantizer(MEMBER, 3, estimator=None),
        GroupedQuantizer(MEMBER, 3),
        ResidualQuantizer(partial(ResidualQuantizer, MEMBER, 2, estimator=None), 2, estimator=None),
    ],
    ids=["stages", "groups", "stages of stages"],
)
def test_members_draw_apart(composite: ResidualQuantizer | GroupedQuantizer) -> None:
    seeds = [module.seed for module in composite.modules() if isinstance(module, Codebook)]
    assert len(seeds) == len(set(seeds)) >= 3 and min(seeds) == 0


def test_stages_restart_from_different_vectors() -> None:
    chosen = []

    class Watched(EMACodebook):
        def overwrite(self, indices: Tensor, vectors: Tensor, *, share: Tensor, usage: Tensor) -> None:
            chosen.append(vectors[:, 0].clone())
            super().overwrite(indices, vectors, share=share, usage=usage)

    member = partial(Quantizer, "ema", dim=4, codebook_size=8, codebook=Watched, maintenance=[RandomRestart(every=1)])
    quantizer = GroupedQuantizer(member, 2)
    x = torch.arange(50.0)[:, None].expand(50, 8)
    quantizer(x), quantizer(x)
    first, second = chosen
    assert not torch.equal(first, second)

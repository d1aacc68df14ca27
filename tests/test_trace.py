"""How far a reader climbs: the bounds on the functions and files that a call passes."""

from collections.abc import Iterator

import pytest

from scripts import trace_calls
from tests.kernels.stand_ins import without
from vqkit.kernels import native


@pytest.fixture(params=["compiled", "torch"])
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """What searches: the compiled search, where it was built, or torch, whose tiles and bounds are functions too."""
    if request.param == "torch":
        with without(native):
            yield request.param
    elif native.variants():
        yield request.param
    else:
        pytest.skip("the compiled search is not built: make native")


def files(calls: list[trace_calls.Call]) -> set[str]:
    return {call.file for call in calls}


def test_a_training_forward(engine: str) -> None:
    calls = trace_calls.training_forward()
    assert len(calls) <= {"compiled": 43, "torch": 51}[engine]
    assert len(files(calls)) <= {"compiled": 12, "torch": 14}[engine]


def test_a_further_residual_stage(engine: str) -> None:
    assert len(trace_calls.further_stage()) <= {"compiled": 37, "torch": 45}[engine]


def test_encode(engine: str) -> None:
    calls = trace_calls.eval_calls()[0]
    assert len(calls) <= {"compiled": 17, "torch": 25}[engine]
    assert len(files(calls)) <= {"compiled": 9, "torch": 11}[engine]


def test_a_look_up() -> None:
    assert len(trace_calls.eval_calls()[1]) <= 10


def test_the_door_is_passed_once() -> None:
    """By a composite of composites, too: a further stage passes none of its functions."""
    door = {"BaseQuantizer.forward", "BaseQuantizer.open", "autocast_disabled"}
    assert not door & {call.function for call in trace_calls.further_stage()}
    assert door <= {call.function for call in trace_calls.training_forward()}

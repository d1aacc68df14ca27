"""How far a reader climbs: the bounds on the functions and files that a call passes."""

import pytest

from scripts import trace_calls
from vqkit.kernels import native

compiled = pytest.mark.skipif(not native.variants(), reason="the compiled search is not built: make native")


def files(calls: list[trace_calls.Call]) -> set[str]:
    return {call.file for call in calls}


@compiled
def test_a_training_forward() -> None:
    calls = trace_calls.training_forward()
    assert len(calls) <= 50 and len(files(calls)) <= 12


@compiled
def test_a_further_residual_stage() -> None:
    assert len(trace_calls.further_stage()) <= 35


def test_a_look_up() -> None:
    assert len(trace_calls.eval_calls()[1]) <= 6


def test_the_door_is_passed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a composite of composites, too: a further stage passes none of its functions."""
    door = {"BaseQuantizer.forward", "BaseQuantizer.open", "autocast_disabled"}
    assert not door & {call.function for call in trace_calls.further_stage()}
    assert door <= {call.function for call in trace_calls.training_forward()}

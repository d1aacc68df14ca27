"""Interleaved timing: every side is measured in every round, so that a disturbance hits all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch


def timed(call: Callable[[], object], *, calls: int = 1) -> float:
    """Seconds of a call, the mean of `calls` in a row, device work included."""
    _synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    _synchronize()
    return (time.perf_counter() - start) / calls


def worked(call: Callable[[], object]) -> float:
    """Seconds that a call takes of processors, of all threads together.

    What other programs take in the meantime does not count. That they share caches and memory does, for both sides
    alike.
    """
    start = time.process_time()
    call()
    return time.process_time() - start


def _synchronize() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def one_round(measures: Mapping[str, Callable[[], float]], number: int) -> dict[str, float]:
    """Seconds of each side; the order is reversed in every other round.

    Args:
        measures: for each side a function that measures it once and returns seconds, such as `partial(timed, call)`
            or `partial(worked, call)`.
        number: of the round, from 0.
    """
    names = list(measures)
    return {name: measures[name]() for name in (names if number % 2 == 0 else reversed(names))}


def ratio(times: Sequence[float], reference: Sequence[float]) -> float | None:
    """Median over the rounds of `times / reference`, both in the order of rounds; None without a common round.

    One of them may have ended earlier: only rounds that both took part in count.
    """
    quotients = [time / other for time, other in zip(times, reference, strict=False)]
    return statistics.median(quotients) if quotients else None

"""Memory of one call, in a process of its own."""

import ctypes
import gc
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # else the profiler calls a machine without a GPU an error

import torch
from torch.profiler import ProfilerActivity, profile

M_MMAP_THRESHOLD = -3  # of mallopt
MIB = 2**20
T = TypeVar("T")


class Killed(RuntimeError):
    """A process was ended by the system, most likely for its memory."""


class Memory(NamedTuple):
    """Bytes: the growth at the peak of a call, and the largest single allocation."""

    peak: int | None
    largest: int


def observe(call: Callable[[], object], device: str) -> Memory:
    """Memory of a call, which runs twice, since the profiler takes some for each operation; to be run in a process of
    its own.
    """
    peak = peak_growth(call, device)
    activity = ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU
    with profile(activities={ProfilerActivity.CPU, activity}, profile_memory=True, acc_events=True) as record:
        call()
    kind = torch.profiler.DeviceType.CUDA if device == "cuda" else torch.profiler.DeviceType.CPU
    events = record.profiler.kineto_results.events()
    sizes = [event.nbytes() for event in events if event.name() == "[memory]" and event.device_type() == kind]
    return Memory(peak, max(sizes, default=0))


def peak_growth(call: Callable[[], object], device: str) -> int | None:
    """Bytes by which memory in use rises at most during a call; None where the system does not tell.

    On the CPU the resident set, so that libraries with an allocator of their own are seen too; to be run in a process
    of its own, after `return_freed_memory()`.
    """
    before = _reset_peak(device)
    call()
    peak = _peak(device)
    return None if peak is None else peak - before


def return_freed_memory() -> None:
    """From now on what is freed goes back to the system at once: the resident set is what is in use."""
    if sys.platform == "linux":
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**16)


def _reset_peak(device: str) -> int:
    """Forget earlier peaks; bytes in use now."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    if sys.platform != "linux":
        return 0
    ctypes.CDLL(None).malloc_trim(0)  # what set-up has freed: the call shall have to ask for it
    Path("/proc/self/clear_refs").write_text("5")
    return _resident("VmRSS")


def _peak(device: str) -> int | None:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return _resident("VmHWM") if sys.platform == "linux" else None


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def in_own_process(function: Callable[..., T], *arguments: object) -> T:
    """`function(*arguments)`, in a process that has imported this module and done nothing else.

    Raises:
        Killed: a signal ended the process.
        RuntimeError: it ended by itself, without a result; its traceback is on the standard error.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_result, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        if process.exitcode is not None and process.exitcode < 0:
            raise Killed(f"signal {-process.exitcode} ended the process of {arguments}: out of memory?") from None
        raise RuntimeError(f"the process of {arguments} ended with exit code {process.exitcode}") from None
    finally:
        process.join()


def _send_result(sender: object, function: Callable[..., object], arguments: Sequence[object]) -> None:
    sender.send(function(*arguments))

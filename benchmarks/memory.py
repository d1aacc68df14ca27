"""Memory of one training step, in a process of its own."""

import ctypes
import gc
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # else the profiler calls a machine without a GPU an error

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.counterparts import Shape, build, step, tensors, warm_up

M_MMAP_THRESHOLD = -3  # of mallopt
MIB = 2**20


class Memory(NamedTuple):
    """Bytes: the growth at the peak of a step, and the largest single allocation."""

    peak: int | None
    largest: int


def measure_memory(method: str, side: int, shape: Shape, device: str, threads: int) -> Memory:
    """Memory of the first full-size step; to be called in a process of its own."""
    torch.set_num_threads(threads)
    if sys.platform == "linux":
        # What is freed goes back to the system at once: the resident set is what is in use, not what malloc keeps.
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**16)
    warm_up([build(method, side, shape, device)], shape, device)
    module = build(method, side, shape, device)
    x, upstream = tensors(shape, device)
    activity = ProfilerActivity.CUDA if x.is_cuda else ProfilerActivity.CPU
    with profile(activities={ProfilerActivity.CPU, activity}, profile_memory=True, acc_events=True) as record:
        before = _reset_peak(x)
        step(module, x, upstream)
        peak = _peak(x)
    kind = torch.profiler.DeviceType.CUDA if x.is_cuda else torch.profiler.DeviceType.CPU
    events = record.profiler.kineto_results.events()
    sizes = [event.nbytes() for event in events if event.name() == "[memory]" and event.device_type() == kind]
    return Memory(None if peak is None else peak - before, max(sizes))


def _reset_peak(x: Tensor) -> int:
    """Forget earlier peaks; bytes in use now."""
    gc.collect()
    if x.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    if sys.platform != "linux":
        return 0
    ctypes.CDLL(None).malloc_trim(0)  # what set-up has freed: the step shall have to ask for it
    Path("/proc/self/clear_refs").write_text("5")
    return _resident("VmRSS")


def _peak(x: Tensor) -> int | None:
    if x.is_cuda:
        return torch.cuda.max_memory_allocated()
    return _resident("VmHWM") if sys.platform == "linux" else None


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def in_own_process(function: Callable[..., Memory], *arguments: object) -> Memory:
    """`function(*arguments)`, in a process that has imported this module and done nothing else."""
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
        message = f"the process of {arguments} ended with exit code {process.exitcode}: out of memory?"
        raise RuntimeError(message) from None
    finally:
        process.join()


def _send_result(sender: object, function: Callable[..., Memory], arguments: Sequence[object]) -> None:
    sender.send(function(*arguments))

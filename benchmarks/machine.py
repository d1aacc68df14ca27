"""What a table of measurements has to say about the machine, and the way it is written."""

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import torch

import vqkit
from vqkit.saving.files import write_whole

INSTRUCTION_SETS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "sve", "i8mm", "bf16")


def circumstances(command: str, device: str, threads: int, load: float, versions: Sequence[str] = ()) -> list[str]:
    """The head of a table, as Markdown bullets.

    Args:
        command: what was run, without paths of this machine.
        device: "cpu" or "cuda".
        threads: that every library was told to use.
        load: average over a minute, read before the first measurement.
        versions: of other libraries than torch and vqkit, such as "einops 0.8.2".
    """
    name = torch.cuda.get_device_name() if device == "cuda" else processor()
    return [
        f"- command: `{command}`",
        f"- machine: {name}, {os.cpu_count()} cores, load average at the start {load:.1f}",
        f"- instruction sets: {', '.join(instruction_sets()) or 'unknown'}; torch uses {_capability()}, BLAS {_blas()}",
        f"- threads: {threads}",
        f"- versions: {', '.join([f'torch {torch.__version__}', f'vqkit {vqkit.__version__}', *versions])}",
        f"- search on this device: {vqkit.kernels.search_path(device).name}",
        f"- date: {datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
    ]


def processor() -> str:
    """Name of the processor."""
    names = _cpuinfo("model name")
    return names[0] if names else platform.processor() or platform.machine()


def instruction_sets() -> list[str]:
    """Those of `INSTRUCTION_SETS` that the processor has; none where the system does not tell."""
    flags = " ".join(_cpuinfo("flags")[:1] + _cpuinfo("Features")[:1]).split()
    return [name for name in INSTRUCTION_SETS if name in flags]


def _cpuinfo(field: str) -> list[str]:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    return [line.partition(":")[2].strip() for line in lines if line.startswith(field)]


def _capability() -> str:
    return torch.backends.cpu.get_cpu_capability()


def _blas() -> str:
    settings = torch.__config__.show()
    return settings.partition("BLAS_INFO=")[2].partition(",")[0] or "unknown"


def version(package: str) -> str:
    """Its version, or "not installed"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def free_memory(device: str) -> int | None:
    """Bytes that can be had without swapping, within the control group's limit; None where the system does not tell."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    information = Path("/proc/meminfo")
    if not information.exists():
        return None
    lines = information.read_text().splitlines()
    free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    group = [Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current")]
    if all(path.exists() for path in group):
        limit, current = (path.read_text().strip() for path in group)
        if limit != "max":
            free.append(int(limit) - int(current))
    return min(free, default=None)


def number(value: float | None, factor: float = 1.0) -> str:
    """`value * factor` to three digits, whole from 100 on; "-" for None."""
    if value is None:
        return "-"
    return f"{value * factor:.0f}" if value * factor >= 100 else f"{value * factor:.3g}"


def table_row(cells: Sequence[object]) -> str:
    """One line of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"


def write(path: Path, text: str) -> None:
    """Write a table whole: an interruption leaves the old file."""
    write_whole(path, text.encode())

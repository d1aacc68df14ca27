"""Runs of many seeds in a child process with limits of time and memory, watched for imports, code and files."""

import faulthandler
import os
import re
import resource
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

SECONDS, MEMORY_BYTES = 10, 2**30
"""Of one case: the processor's time, and address space beyond what the process has at the start."""

PROCESSES = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect"}
LIBRARIES = tuple(str(Path(path).resolve()) for path in [*sys.path, sys.base_prefix, "/dev", "/proc/self"] if path)
"""Where modules come from, some of which load others when they are first used."""
BAIT = {"this", "antigravity", "vqkit.kernels.native.__main__"}
"""Modules that nothing but the damaged files names."""

Case = Callable[[int, Path], None]
"""From a seed and an empty folder: write damaged files there, and open them."""


def findings(case: Case, seeds: range, folder: Path, *, crashes_are_others: bool = False) -> list[str]:
    """What went wrong, one line for each seed; nothing, as it should be.

    Args:
        case: raises `ValueError` or `FileNotFoundError` in one line with a name in `folder`, or nothing.
        seeds: of the cases.
        folder: for their files.
        crashes_are_others: a signal, such as that of a decoder in C, leaves the file out and is no finding.
    """
    found: list[str] = []
    first = seeds.start
    while first < seeds.stop:
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            _serve(case, range(first, seeds.stop), folder, writer)
        os.close(writer)
        with os.fdopen(reader, encoding="utf-8", errors="replace") as lines:
            heard = lines.read().splitlines()
        status = os.waitpid(child, 0)[1]
        found += [line for line in heard if " " in line]
        begun = [line for line in heard if " " not in line]
        first = int(begun[-1]) + 1 if begun else seeds.stop
        if status and not (crashes_are_others and os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGPROF):
            ended = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"status {status >> 8}"
            found.append(f"{begun[-1] if begun else 'start'} ended by {ended}")
    return found


def _serve(case: Case, seeds: range, folder: Path, writer: int) -> None:
    """Run the cases and end the process; each seed is written before it is tried."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders in C write there what they think of a file
        faulthandler.disable()
        warnings.simplefilter("ignore")
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY_BYTES,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (MEMORY_BYTES,) * 2)
        seen: list[str] = []

        def watch(event: str, arguments: tuple) -> None:
            opened = arguments[0] if event == "open" and isinstance(arguments[0], str) else str(folder)
            if event in PROCESSES or not opened.startswith((str(folder), *LIBRARIES)):
                seen.append(f"{event} {arguments[0]}")

        sys.addaudithook(watch)
        with os.fdopen(writer, "w", encoding="utf-8", errors="replace") as lines:
            for seed in seeds:
                lines.write(f"{seed}\n")
                lines.flush()
                place = folder / str(seed)
                place.mkdir()
                signal.setitimer(signal.ITIMER_PROF, SECONDS)
                problem = _problem(case, seed, place)
                signal.setitimer(signal.ITIMER_PROF, 0)
                for name in BAIT & sys.modules.keys():
                    seen.append(f"import {name}")
                    del sys.modules[name]
                if problem or seen:
                    lines.write(f"{seed} {problem or ''} {' '.join(seen)}".replace("\n", " | ") + "\n")
                else:
                    _remove(place)
                seen.clear()
    except BaseException:
        traceback.print_exc(file=sys.stdout)
        os._exit(3)
    os._exit(0)


def _remove(place: Path) -> None:
    for path in place.iterdir():
        path.unlink()
    place.rmdir()


def _problem(case: Case, seed: int, place: Path) -> str | None:
    """What is wrong with how a case ended; None for a clear refusal, or none."""
    try:
        case(seed, place)
    except (ValueError, FileNotFoundError) as error:
        message = str(error)
        if "\n" in message:
            return f"several lines: {message}"
        if str(place) not in message:
            return f"no name of a file: {message}"
        if re.search(r"MemoryError|[Nn]ot enough memory|allocate", message):
            return f"memory: {message}"
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)[-3:]
        return f"{type(error).__name__}: {error} at {[(Path(f.filename).name, f.lineno) for f in frames]}"
    return None

"""The search on AMX, in emulation: the sources of the variant with the tile instructions replaced by plain C++.

What it cannot show is that the emulation is the hardware; `python -m vqkit.kernels.native` compares the variant with
the torch path where a processor has the unit.
"""

import ctypes
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.kernels.data import data_set, oracle
from vqkit.kernels.native import build

HERE = Path(__file__).parent
METRICS = ("euclidean", "dot", "cosine")
Search = Callable[..., Tensor]

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or shutil.which("c++") is None,
    reason="needs a C++ compiler for x86-64",
)


def compiled(folder: Path, replaced: tuple[str, str] = ("", "")) -> Search:
    """The emulated search; one piece of its source may be replaced."""
    for source in build.FOLDER.glob("*.[chi]*"):
        (folder / source.name).write_text(source.read_text().replace(*replaced) if replaced[0] else source.read_text())
    flags = [
        "-std=c++17",
        "-O2",
        "-mfma",
        "-mavx2",
        "-fPIC",
        "-shared",
        "-fvisibility=hidden",
        f"-I{folder}",
        "-Wno-psabi",
    ]
    files = [str(folder / "search_amx.cpp"), str(HERE / "amx_entry.cpp")]
    library = folder / "amx.so"
    command = ["c++", *flags, "-include", str(HERE / "amx_emulation.h"), *files, "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    function = ctypes.CDLL(str(library)).emulated_search

    def search(x: Tensor, codes: Tensor, metric: str, parts: int = 1) -> Tensor:
        x, codes = x.contiguous(), codes.contiguous()
        indices = torch.full((len(x),), -1)
        pointer, integer = (lambda tensor: ctypes.c_void_p(tensor.data_ptr())), ctypes.c_int64
        sizes = integer(len(x)), integer(x.shape[1]), pointer(codes), integer(len(codes))
        function(pointer(x), *sizes, integer(METRICS.index(metric)), integer(parts), pointer(indices))
        return indices

    return search


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Search:
    return compiled(tmp_path_factory.mktemp("amx"))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    "name", ["gaussian", "clustered", "tiny initial codes", "offset 100", "unit norm", "near duplicates"]
)
def test_equals_the_float64_argmin(search: Search, name: str, metric: str) -> None:
    for rows, size, depth in ((40, 300, 24), (33, 65, 64), (7, 10, 65)):
        x, codes = data_set(name, rows, size, depth)
        assert torch.equal(search(x, codes, metric), oracle(x, codes, metric))


def test_codes_in_two_parts(search: Search) -> None:
    x, codes = data_set("gaussian", 40, 700, 40)
    assert torch.equal(search(x, codes, "euclidean", parts=2), oracle(x, codes, "euclidean"))


def test_the_bound_is_needed(tmp_path: Path) -> None:
    """With a bound of float32 alone, rows are called certain that 16 bits cannot decide: the test above can fail."""
    search = compiled(tmp_path, ("3 * 0x1p-16 * (1 + 0x1p-7) + (1 + 0x1p-5) * relative", "0x1p-30"))
    x, codes = data_set("gaussian", 2000, 300, 8)
    codes = codes + 1e-5 * codes.roll(1, 0) + torch.cat([codes[:1] * 0, codes[:-1]])  # many close calls
    x = (codes[torch.arange(2000) % 300] + codes[torch.arange(2000) * 7 % 300]) / 2 + 1e-6 * x
    assert not torch.equal(search(x, codes, "euclidean"), oracle(x, codes, "euclidean"))

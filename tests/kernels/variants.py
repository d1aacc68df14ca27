"""Single variants of the compiled search, built from their sources with changes: emulated, or with a wrong constant."""

import ctypes
import platform
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.kernels.data import METRICS
from vqkit.kernels.native import build

HERE = Path(__file__).parent
Search = Callable[..., Tensor]

needs_compiler = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or shutil.which("c++") is None,
    reason="needs a C++ compiler for x86-64",
)


def compiled(
    folder: Path, variant: str, *, flags: Sequence[str] = (), replaced: tuple[str, str] | None = None
) -> Search:
    """`search(x, codes, metric, parts=1, k=1)` of one variant; one piece of its sources may be replaced."""
    found = 0
    for source in build.FOLDER.glob("*.[chi]*"):
        text = source.read_text()
        if replaced:
            found += text.count(replaced[0])
            text = text.replace(*replaced)
        (folder / source.name).write_text(text)
    assert found == (1 if replaced else 0), f"{replaced} stands {found} times in the sources"
    library = folder / f"{variant}.so"
    options = ["-std=c++17", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-Wno-psabi", f"-I{folder}"]
    files = [str(folder / f"search_{variant}.cpp"), str(HERE / "variant_entry.cpp")]
    command = ["c++", *options, f"-DVARIANT={variant}_variant", *flags, *files, "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    function = ctypes.CDLL(str(library)).variant_search

    def search(x: Tensor, codes: Tensor, metric: str, parts: int = 1, k: int = 1) -> Tensor:
        x, codes = x.contiguous(), codes.contiguous()
        indices = torch.full((len(x), k), -2)
        pointer, integer = (lambda tensor: ctypes.c_void_p(tensor.data_ptr())), ctypes.c_int64
        sizes = integer(len(x)), integer(x.shape[1]), pointer(codes), integer(len(codes))
        function(pointer(x), *sizes, integer(METRICS.index(metric)), integer(parts), integer(k), pointer(indices))
        return indices[:, 0] if k == 1 else indices

    return search

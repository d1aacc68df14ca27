"""Builds the compiled search with the system's C++ compiler."""

import functools
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden"]
STABLE_ABI = ["-DTORCH_TARGET_VERSION=0x020a000000000000"]  # of PyTorch 2.10: one build serves later ones too
INSTRUCTION_SETS = {
    "search_avx2.cpp": ["-mavx2", "-mfma"],
    "search_avx512.cpp": ["-mavx512f", "-mprefer-vector-width=512"],
    "search_amx.cpp": ["-mamx-tile", "-mamx-bf16", "-mavx512f", "-mprefer-vector-width=512"],
}


@functools.cache
def library_path() -> Path:
    """Where the library of these very sources is, once it was built."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for source in sorted(FOLDER.glob("*.[chi]*")):
        digest.update(source.read_bytes())
    return FOLDER / f"search-{digest.hexdigest()[:12]}.so"


def sources() -> dict[str, list[str]]:
    """Name of each source for this machine -> its own flags."""
    headers = [f"-isystem{path}" for path in _cpp_extension().include_paths()]
    own: dict[str, list[str]] = {"search_portable.cpp": [], "mixing.cpp": [], "operator.cpp": [*STABLE_ABI, *headers]}
    return own | (INSTRUCTION_SETS if platform.machine() in ("x86_64", "AMD64") else {})


def build() -> Path:
    """Compile and link; libraries of earlier sources are removed.

    Raises:
        RuntimeError: the platform is not supported, there is no compiler, the folder cannot be written, or it fails.
    """
    if platform.system() not in ("Linux", "Darwin"):
        raise RuntimeError(f"platform is {platform.system()}: expected Linux or macOS; elsewhere use the torch path")
    path = library_path()
    if not os.access(FOLDER, os.W_OK):
        raise RuntimeError(f"{FOLDER} cannot be written: install vqkit where you may write, or build as its owner")
    with tempfile.TemporaryDirectory(dir=FOLDER) as directory:
        compiler, folder = _cpp_extension().get_cxx_compiler(), Path(directory)
        objects = []
        for name, flags in sources().items():
            objects.append(str(folder / f"{name}.o"))
            _run([compiler, *FLAGS, *flags, "-c", str(FOLDER / name), "-o", objects[-1]])
        built = folder / path.name
        libraries = [f"-L{directory}" for directory in _cpp_extension().library_paths()] + ["-ltorch_cpu", "-ltorch"]
        _run([compiler, "-shared", *objects, *libraries, "-o", str(built)])
        os.replace(built, path)
    for old in FOLDER.glob("search-*.so"):
        if old != path:
            old.unlink()
    return path


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        name = repr(command[0])
        message = f"no C++ compiler: {name} was not found; install g++ (12 or later) or clang++, or name yours in CXX"
        raise RuntimeError(message) from None
    except subprocess.CalledProcessError as error:
        needed = "g++ 12 or later, or clang++, is needed; another compiler is named in CXX"
        raise RuntimeError(f"this command failed:\n{' '.join(command)}\n{error.stderr}{needed}") from None


def _cpp_extension():  # type: ignore[no-untyped-def]
    try:
        from torch.utils import cpp_extension
    except ImportError as error:
        raise RuntimeError(f"{error}: install the tools of the build, pip install 'vqkit[native]'") from None
    return cpp_extension


def main() -> None:
    """Build, then search with every variant in a fresh process."""
    path = build()
    check = (
        "import torch\n"
        "from vqkit.kernels import native, nearest\n"
        "x, codes = torch.randn(500, 24), torch.randn(300, 24)\n"
        "expected = [nearest(x, codes, k=k, impl='torch').indices.view(500, k) for k in (1, 10)]\n"
        "assert native.variants(), 'it cannot be loaded'\n"
        "for name in native.variants():\n"
        "    for indices in expected:\n"
        "        found = torch.ops.vqkit_native.search(x[None], [codes[None]], None, 0, indices.shape[1], name)[0]\n"
        "        assert torch.equal(found, indices), name\n"
        "print('variants that run here:', *native.variants())\n"
    )
    sys.stdout.write(f"built {path.name}\n")
    sys.stdout.flush()
    subprocess.run([sys.executable, "-c", check], check=True)

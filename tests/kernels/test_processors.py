"""The kernel tests on the code paths of other processors: another order of sums must change no verdict.

NumPy's OpenBLAS runs the products of Triton's interpreter, ATen's vectorized loops most of torch.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[2]
FILES = ["test_gpu_soft.py", "test_gpu_bound.py", "test_gpu_statistics.py", "test_soft.py", "test_entropy.py"]
# Core type asked of OpenBLAS, the name that it then reports, and the vector instructions of ATen's loops. (NumPy's
# OpenBLAS has no path of its own for Zen: it takes Haswell's. Prescott's it reports as Katmai.)
PROCESSORS = [("Prescott", "Katmai", "default"), ("Haswell", "Haswell", "avx2"), ("SkylakeX", "SkylakeX", "default")]
TAKEN = """
import json, numpy, threadpoolctl, torch
cores = [entry["architecture"] for entry in threadpoolctl.threadpool_info() if entry["internal_api"] == "openblas"]
print(json.dumps([cores, torch.backends.cpu.get_cpu_capability().lower()]))
"""


@pytest.mark.parametrize(
    "tier",
    [
        pytest.param("not slow and not long", marks=pytest.mark.slow, id="default"),
        pytest.param("slow", marks=pytest.mark.long, id="slow"),
    ],
)
@pytest.mark.parametrize(("core", "reported", "capability"), PROCESSORS, ids=["prescott", "haswell-avx2", "skylakex"])
def test_kernels_pass_on(core: str, reported: str, capability: str, tier: str) -> None:
    if core == "Haswell" and not torch.cpu._is_avx2_supported():
        pytest.skip("this processor has no AVX2")
    if core == "SkylakeX" and not torch.cpu._is_avx512_supported():
        pytest.skip("this processor has no AVX-512")
    settings = {"OPENBLAS_CORETYPE": core, "ATEN_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **settings}
    taken = _run(["-c", TAKEN], environment)
    assert taken.returncode == 0, taken.stderr
    assert json.loads(taken.stdout) == [[reported], capability], "the settings have no effect here"
    files = [f"tests/kernels/{name}" for name in FILES]
    done = _run(["-m", "pytest", "-o", "addopts=-q", "-m", tier, *files], environment)
    assert done.returncode == 0, f"with {settings}:\n{done.stdout[-8000:]}"


def _run(arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)

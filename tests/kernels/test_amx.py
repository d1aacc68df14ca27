"""The search on AMX, in emulation: the sources of the variant with the tile instructions replaced by plain C++.

What it cannot show is that the emulation is the hardware; `python -m vqkit.kernels.native` compares the variant with
the torch path where a processor has the unit.
"""

from pathlib import Path

import pytest
import torch

from tests.kernels.data import METRICS, data_set, oracle, oracle_scores
from tests.kernels.variants import HERE, Search, compiled, needs_compiler

pytestmark = needs_compiler
EMULATED = ["-mfma", "-mavx2", "-include", str(HERE / "amx_emulation.h")]


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Search:
    return compiled(tmp_path_factory.mktemp("amx"), "amx", flags=EMULATED)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    "name", ["gaussian", "clustered", "tiny initial codes", "offset 100", "unit norm", "near duplicates"]
)
def test_equals_the_float64_argmin(search: Search, name: str, metric: str) -> None:
    for rows, size, depth in ((40, 300, 24), (33, 65, 64), (7, 10, 65)):
        x, codes = data_set(name, rows, size, depth)
        assert torch.equal(search(x, codes, metric), oracle(x, codes, metric))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [2, 10, 100])
def test_several_codes_are_in_their_float64_order(search: Search, k: int, metric: str) -> None:
    """With 16 bits to a score, most codes are compared with their neighbours in double precision."""
    for parts, size, depth in ((1, 300, 24), (2, 700, 65)):
        x, codes = data_set("gaussian", 40, size, depth)
        order = oracle_scores(x, codes, metric).sort(1).indices
        assert torch.equal(search(x, codes, metric, parts=parts, k=k), order[:, :k])


def test_codes_in_two_parts(search: Search) -> None:
    x, codes = data_set("gaussian", 40, 700, 40)
    assert torch.equal(search(x, codes, "euclidean", parts=2), oracle(x, codes, "euclidean"))


@pytest.mark.slow
def test_the_bound_is_needed(tmp_path: Path) -> None:
    """With a bound of float32 alone, rows are called certain that 16 bits cannot decide: the test above can fail."""
    bound = "3 * 0x1p-16 * (1 + 0x1p-7) + (1 + 0x1p-5) * relative"
    search = compiled(tmp_path, "amx", flags=EMULATED, replaced=(bound, "0x1p-30"))
    x, codes = data_set("gaussian", 2000, 300, 8)
    codes = codes + 1e-5 * codes.roll(1, 0) + torch.cat([codes[:1] * 0, codes[:-1]])  # many close calls
    x = (codes[torch.arange(2000) % 300] + codes[torch.arange(2000) * 7 % 300]) / 2 + 1e-6 * x
    assert not torch.equal(search(x, codes, "euclidean"), oracle(x, codes, "euclidean"))

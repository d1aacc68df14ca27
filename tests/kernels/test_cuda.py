"""The search on a GPU against the float64 oracle. Runs by itself where CUDA is present."""

import pytest
import torch

from tests.kernels.data import DATA, METRICS, data_set, oracle
from vqkit.kernels import engines, nearest, residual_nearest, search_path

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def fused_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(engines.SWITCH, "1")


def test_the_fused_kernels_run() -> None:
    assert search_path("cuda").name.startswith("triton")


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", DATA)
def test_equals_the_float64_argmin(name: str, metric: str) -> None:
    x, codes = data_set(name)
    assert torch.equal(nearest(x.cuda(), codes.cuda(), metric=metric).indices.cpu(), oracle(x, codes, metric))


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_a_lowered_matmul_precision_changes_nothing(precision: str) -> None:
    x, codes = data_set("gaussian", rows=2000, size=500)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        assert torch.equal(nearest(x.cuda(), codes.cuda()).indices.cpu(), oracle(x, codes, "euclidean"))
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("metric", METRICS)
def test_the_codes_of_the_cpu(metric: str) -> None:
    x, codes = data_set("gaussian")
    x, codes = x.view(2, 300, -1), codes.view(2, 150, -1)
    valid = torch.arange(150) % 3 != torch.tensor([[0], [1]])
    options = {"metric": metric, "k": 4, "return_scores": True, "return_margin": True}
    expected = nearest(x, codes, valid=valid, **options)
    found = nearest(x.cuda(), codes.cuda(), valid=valid.cuda(), **options)
    assert torch.equal(found.indices.cpu(), expected.indices)
    torch.testing.assert_close(found.scores.cpu(), expected.scores)
    torch.testing.assert_close(found.margin.cpu(), expected.margin)
    levels = residual_nearest(x[0].cuda(), list(codes.cuda()), metric=metric)
    assert torch.equal(levels.indices.cpu(), residual_nearest(x[0], list(codes), metric=metric).indices)


def test_the_torch_path_gives_the_same() -> None:
    x, codes = data_set("gaussian")
    assert torch.equal(nearest(x.cuda(), codes.cuda(), impl="torch").indices.cpu(), oracle(x, codes, "euclidean"))

"""On a GPU, beside the tests of the fused kernels: the torch engine, and flags that lower products."""

import pytest
import torch

from tests.kernels.data import METRICS, data_set, oracle
from tests.kernels.graphs import matmul_precision
from vqkit.kernels import nearest, residual_nearest

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("impl", ["torch", "triton"])
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_a_lowered_matmul_precision_changes_nothing(precision: str, impl: str) -> None:
    x, codes = data_set("gaussian", rows=2000, size=500)
    with matmul_precision(precision):
        assert torch.equal(nearest(x.cuda(), codes.cuda(), impl=impl).indices.cpu(), oracle(x, codes, "euclidean"))


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

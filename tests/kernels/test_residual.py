"""Several codebooks in one call: the codes of the loop, and who uses it."""

from functools import partial

import pytest
import torch
from torch import Tensor

import vqkit
from tests.kernels.graphs import traced
from tests.refusals import refused
from vqkit.kernels import nearest, residual_nearest

METRICS = ("euclidean", "dot", "cosine")


def problem(rows: int = 90, depth: int = 12, dtype: torch.dtype = torch.float32) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    sizes = (40, 7, 64, 1)
    books = [0.5**level * torch.randn(size, depth, generator=generator) for level, size in enumerate(sizes)]
    return torch.randn(rows, depth, generator=generator).to(dtype), [book.to(dtype) for book in books]


@pytest.mark.parametrize("metric", METRICS)
def test_equals_the_loop_bit_for_bit(metric: str) -> None:
    x, books = problem()
    found = residual_nearest(x, books, metric=metric)
    total = torch.zeros_like(x)
    for level, codes in enumerate(books):
        expected = nearest(x - total, codes, metric=metric).indices
        assert torch.equal(found.indices[:, level], expected)
        total = total + codes[expected]
    assert torch.equal(found.quantized, total)


def test_shapes_strides_and_gradients() -> None:
    x, books = problem()
    expected = residual_nearest(x, books)
    found = residual_nearest(x.view(3, 5, 6, 12).transpose(0, 1).transpose(0, 1), books)
    assert torch.equal(found.indices, expected.indices.view(3, 5, 6, 4)) and found.quantized.shape == (3, 5, 6, 12)
    assert torch.equal(residual_nearest(x[0], books).indices, expected.indices[0])
    assert residual_nearest(x[:0], books).indices.shape == (0, 4)
    assert torch.equal(
        residual_nearest(x.T.contiguous().T, [b.T.contiguous().T for b in books]).indices, expected.indices
    )
    found = residual_nearest(x.requires_grad_(), [book.requires_grad_() for book in books])
    assert torch.equal(found.indices, expected.indices) and not found.quantized.requires_grad


def test_dtypes() -> None:
    x, books = problem(dtype=torch.float64)
    assert residual_nearest(x, books).quantized.dtype == torch.float64
    x, books = problem(dtype=torch.bfloat16)
    found = residual_nearest(x, books)
    expected = residual_nearest(x.float(), [book.float() for book in books])
    assert found.quantized.dtype == torch.float32
    assert torch.equal(found.indices, expected.indices) and torch.equal(found.quantized, expected.quantized)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(residual_nearest(x, books).indices, expected.indices)


def test_a_row_that_is_not_finite_leaves_the_others_alone() -> None:
    x, books = problem()
    expected = residual_nearest(x, books).indices
    x[5, 3], x[17] = torch.nan, torch.inf
    found = residual_nearest(x, books).indices
    expected[[5, 17]] = 0
    assert torch.equal(found, expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compile_export_and_the_operator() -> None:
    x, books = problem()

    expected = residual_nearest(x, books)
    for module in traced(lambda x: tuple(residual_nearest(x, books)), (x,), [0]):
        indices, quantized = module(x[:33])
        assert torch.equal(indices, expected.indices[:33]) and torch.equal(quantized, expected.quantized[:33])
    torch.library.opcheck(torch.ops.vqkit.residual_nearest.default, (x[:5], books, "cosine"))


test_wrong_arguments_are_named = refused(
    ([], "codebooks is empty: expected at least one tensor"),
    ([torch.zeros(4, 3), torch.zeros(4, 2)], r"x has shape \(2, 3\), expected \(..., 2\)"),
    ([torch.zeros(4, 3), torch.zeros(4, 3).int()], r"codebooks\[1\] has dtype torch.int32"),
    ([torch.zeros(2, 4, 3)], r"codebooks\[0\] has shape \(2, 4, 3\), expected \(K, D\)"),
    by=lambda books: residual_nearest(torch.zeros(2, 3), books),
)


def quantizer(**options: object) -> vqkit.ResidualQuantizer:
    stage = partial(vqkit.Quantizer, **{"method": "ema", "dim": 8, "codebook_size": 16} | options)
    return vqkit.ResidualQuantizer(stage, 3, estimator=None if "codebook_dim" in options else vqkit.StraightThrough())


@pytest.mark.parametrize(
    ("options", "encode"),
    [
        ({}, "all stages in one call"),
        ({"method": "simvq"}, "all stages in one call"),
        ({"search": vqkit.Search("cosine")}, "all stages in one call"),
        ({"normalize": True}, "stage by stage"),
        ({"codebook_dim": 4}, "stage by stage"),
    ],
)
def test_residual_quantizer_searches_in_one_call_where_it_can(options: dict, encode: str) -> None:
    residual = quantizer(**options).eval()
    assert f"encode='{encode}'" in repr(residual)
    x = torch.randn(4, 9, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(9) < torch.tensor([[9], [4], [0], [7]])
    residual.initialize([x])
    assert torch.equal(residual.encode(x, mask), residual(x, mask).indices)


def test_stages_of_different_metrics_are_searched_one_by_one() -> None:
    metrics = iter(("euclidean", "cosine"))
    residual = vqkit.ResidualQuantizer(
        lambda: vqkit.Quantizer(dim=8, codebook_size=16, search=vqkit.Search(next(metrics))), 2
    ).eval()
    assert "encode='stage by stage'" in repr(residual)
    x = torch.randn(1, 50, 8)
    assert torch.equal(residual.encode(x), residual(x).indices)


def test_a_search_of_another_kind_is_not_replaced() -> None:
    class Farthest(vqkit.Search):
        def forward(self, z: Tensor, codes: Tensor, noise: vqkit.Noise | None = None) -> Tensor:
            return super().forward(-z, codes, noise)

    residual = quantizer(search=Farthest()).eval()
    x = torch.randn(1, 50, 8)
    assert torch.equal(residual.encode(x), residual(x).indices) and "stage by stage" in repr(residual)

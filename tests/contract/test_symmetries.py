"""What may be done to codes and vectors together without changing the choice (property P4), and far from zero (P5).

Derived codebooks are baked to a table first, since their rows cannot be set one by one.
"""

import pytest
import torch
from torch import Tensor

from tests.contract.cases import CASES, DIM, Case, each
from tests.contract.test_contract import initialized
from vqkit import Quantizer, bake

every_table = each({name: case for name, case in CASES.items() if isinstance(case.build(), Quantizer)}, {})


def tables(quantizer: Quantizer) -> list[Tensor]:
    """The tensors in which the codes stand: a second one is searched in a cascaded codebook and in an attention."""
    state = quantizer.codebook.state_dict()
    return [state[name] for name in ("vectors", "index_vectors", "keys") if name in state]


def baked(case: Case) -> Quantizer:
    quantizer = bake(initialized(case))
    assert 1 <= len(tables(quantizer)) <= 2
    return quantizer


def in_code_space(quantizer: Quantizer) -> None:
    if quantizer.has_projection or quantizer.codebook.attention:
        pytest.skip("a map stands between the input and what is searched")


@every_table
def test_permuting_the_codes_permutes_the_indices_and_nothing_else(case: Case) -> None:
    quantizer, x = baked(case), case.example(32)
    before = quantizer(x)
    order = torch.randperm(quantizer.codebook_size)
    for table in tables(quantizer):
        table.copy_(table[order].clone())
    after = quantizer(x)
    assert torch.equal(order[after.indices], before.indices) and not torch.equal(after.indices, before.indices)
    assert torch.equal(after.quantized, before.quantized)


@every_table
def test_turning_codes_and_vectors_together_leaves_the_indices(case: Case) -> None:
    quantizer, x = baked(case), case.example(32)
    in_code_space(quantizer)
    before = quantizer.encode(x)
    turn = torch.linalg.qr(torch.randn(DIM, DIM)).Q
    for table in tables(quantizer):
        table.copy_(table @ turn)
    assert torch.equal(quantizer.encode(x @ turn), before)
    assert not torch.equal(quantizer.encode(x), before)


@every_table
def test_a_positive_scale_leaves_the_indices(case: Case) -> None:
    quantizer, x = baked(case), case.example(32)
    in_code_space(quantizer)
    before = quantizer.encode(x)
    for table in tables(quantizer):
        table.mul_(4)
    assert torch.equal(quantizer.encode(4 * x), before)


@every_table
def test_a_translation_leaves_the_indices_of_euclidean_searches(case: Case) -> None:
    quantizer, x = baked(case), case.example(32)
    in_code_space(quantizer)
    before, offset = quantizer.encode(x), torch.randn(DIM)
    for table in tables(quantizer):
        table.add_(offset)
    moved = quantizer.encode(x + offset)
    if quantizer.search.metric == "euclidean" and not quantizer.normalize:
        assert torch.equal(moved, before)
    else:
        assert not torch.equal(moved, before)


@every_table
def test_an_offset_of_a_thousand_deviations_costs_no_index(case: Case) -> None:
    quantizer, x = baked(case), case.example(64) + 1000
    in_code_space(quantizer)
    for table in tables(quantizer):
        table.add_(1000)
    indices = quantizer.encode(x)
    assert torch.equal(quantizer.double().encode(x.double()), indices)
    # The inner product with codes that far away is decided by their length.
    assert len(indices.unique()) > 1 or quantizer.search.metric == "dot"

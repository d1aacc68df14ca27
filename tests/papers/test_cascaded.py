"""The cascaded codebook of UniCode^2 (2506.20214): indices from a frozen table, vectors from a trained one."""

from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.largest_tensor import LargestTensor
from vqkit import CascadedCodebook, Commitment, Quantizer


def build(codebook_size: int = 20, dim: int = 6, **options) -> Quantizer:
    return Quantizer("cascaded", dim=dim, codebook_size=codebook_size, **options)


def drifted(quantizer: Quantizer) -> Quantizer:
    """With values that are no longer the index vectors."""
    with torch.no_grad():
        quantizer.codebook.vectors.add_(torch.randn_like(quantizer.codebook.vectors))
    return quantizer


def test_values_and_gradients() -> None:
    quantizer = drifted(build().double())
    z = torch.randn(30, 6, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(30, 6, dtype=torch.float64)
    output = quantizer(z)
    (output.loss + (output.quantized * upstream).sum()).backward()
    book = quantizer.codebook
    nearest = torch.cdist(z.detach(), book.index_vectors).argmin(1)
    assert torch.equal(output.indices, nearest) and torch.equal(output.quantized, book.vectors[nearest])
    assert not torch.equal(nearest, torch.cdist(z.detach(), book.vectors.detach()).argmin(1))
    assert torch.equal(z.grad, upstream) and output.loss == 0 and not output.losses
    expected = torch.zeros(20, 6, dtype=torch.float64).index_add_(0, nearest, upstream)
    torch.testing.assert_close(book.vectors.grad, expected, rtol=0, atol=1e-14)


def test_at_the_start_a_lookup_is_the_projection_of_the_index_vector() -> None:
    quantizer = build(codebook_dim=3)
    book, indices = quantizer.codebook, torch.arange(20)
    assert torch.equal(book.vectors, book.index_vectors)
    torch.testing.assert_close(quantizer.decode(indices), quantizer.project_out(book.index_vectors))
    quantizer.initialize([torch.randn(500, 6)])
    assert torch.equal(book.vectors, book.index_vectors)
    torch.testing.assert_close(quantizer.decode(indices), quantizer.project_out(book.index_vectors))


def test_commitment_pulls_to_the_row_that_was_searched() -> None:
    quantizer = Quantizer("cascaded", dim=4, codebook_size=8, losses=[Commitment(0.25)]).double()
    with torch.no_grad():
        quantizer.codebook.vectors.add_(5)
    z = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    output = quantizer(z)
    output.loss.backward()
    error = z.detach() - quantizer.codebook.index_vectors[output.indices]
    torch.testing.assert_close(output.loss.detach(), 0.25 * error.square().mean(), rtol=0, atol=1e-14)
    torch.testing.assert_close(z.grad, 0.5 * error / error.numel(), rtol=0, atol=1e-14)


def test_the_index_table_has_no_gradient() -> None:
    quantizer = build(losses=[Commitment()])
    output = quantizer(torch.randn(30, 6, requires_grad=True))
    (output.loss + output.quantized.sum()).backward()
    assert not quantizer.codebook.index_vectors.requires_grad and quantizer.codebook.index_vectors.grad is None
    assert [name for name, _ in quantizer.named_parameters()] == ["codebook.vectors"]


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_a_value_that_was_never_chosen_stays_bit_for_bit(optimizer: type[torch.optim.Optimizer]) -> None:
    quantizer = build(codebook_size=200)
    before, data = quantizer.codebook.vectors.detach().clone(), torch.randn(10, 6)
    steps = optimizer(quantizer.parameters(), lr=0.1)
    for _ in range(5):
        steps.zero_grad()
        output = quantizer(data)
        output.quantized.square().sum().backward()
        steps.step()
    used = torch.zeros(200, dtype=torch.bool).index_fill_(0, output.indices, True)
    moved = (quantizer.codebook.vectors != before).any(1)
    assert torch.equal(moved, used) and not quantizer.codebook.vectors.grad[~used].any()


def test_initialize_puts_centres_of_the_data_into_both_tables() -> None:
    quantizer, centers = build(codebook_size=5), 100 * torch.randn(5, 6)
    quantizer.initialize([centers.repeat(40, 1) + 0.1 * torch.randn(200, 6)])
    for table in (quantizer.codebook.index_vectors, quantizer.codebook.vectors.detach()):
        assert (torch.cdist(centers, table).min(1).values < 1).all()


def test_both_tables_come_from_a_file_which_is_not_needed_again(tmp_path: Path) -> None:
    path, vectors = tmp_path / "index.safetensors", torch.randn(20, 6)
    save_file({"centers": vectors}, path)
    codebook = partial(CascadedCodebook, base_path=str(path))
    quantizer = build(codebook=codebook)
    quantizer.initialize([5 + torch.randn(100, 6)])
    assert torch.equal(quantizer.codebook.index_vectors, vectors) and torch.equal(quantizer.codebook.vectors, vectors)
    drifted(quantizer).save_pretrained(tmp_path / "saved")
    path.unlink()
    loaded, x = Quantizer.from_pretrained(tmp_path / "saved"), torch.randn(50, 6)
    assert torch.equal(loaded(x).quantized, quantizer.eval()(x).quantized)
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        build(codebook=codebook)
    save_file({"centers": vectors[:, :5].contiguous()}, path)
    with pytest.raises(ValueError, match="holds vectors of 5 numbers: expected dim=6"):
        build(codebook=codebook)


def test_half_a_million_codes_are_searched_in_little_memory() -> None:
    """Two tables of 32 MB each; the distances would be 1.0 GB."""
    quantizer = build(codebook_size=500_000, dim=16).eval()
    z = quantizer.codebook.index_vectors[torch.arange(0, 500_000, 245)[:512]] + 0.01
    with torch.no_grad(), LargestTensor() as record:
        indices = quantizer.encode(z)
    assert torch.equal(indices, torch.arange(0, 500_000, 245)[:512])
    assert 0 < record.largest < 1.5 * 500_000 * 16 * 4

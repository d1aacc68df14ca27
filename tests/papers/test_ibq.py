"""Index backpropagation against its equations (Shi et al. 2024), materialised in float64."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.conftest import RankPair
from tests.papers.equations import assert_computes
from vqkit import Entropy, Quantizer, Selection


def oracle(z: Tensor, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Quantized, indices and loss, each from the N x K matrix of probabilities."""
    codes = weights["codebook.vectors"]
    logits = z @ codes.T
    soft, indices = logits.softmax(1), logits.argmax(1)
    hard = F.one_hot(indices, len(codes)).to(z.dtype)
    quantized = (hard - soft.detach() + soft) @ codes
    chosen = codes[indices]
    double = F.mse_loss(quantized, z) + F.mse_loss(chosen.detach(), z) + 0.25 * F.mse_loss(chosen, z.detach())
    sharp = (logits / 0.01).softmax(1)
    mean = sharp.mean(0)
    per_sample = -(sharp * (logits / 0.01).log_softmax(1)).sum(1).mean()
    return quantized, indices, double + 0.05 * (per_sample + (mean * mean.clamp(min=1e-300).log()).sum())


def problem(rows: int = 40) -> tuple[Quantizer, Tensor]:
    torch.manual_seed(0)
    quantizer = Quantizer("ibq", dim=5, codebook_size=9).double()
    return quantizer, (0.5 * torch.randn(rows, 5, dtype=torch.float64)).requires_grad_()


def test_values_losses_and_gradients() -> None:
    quantizer, z = problem()
    output = assert_computes(oracle, quantizer, z)
    assert torch.equal(output.quantized, quantizer.codebook.vectors[output.indices])


def test_codes_start_with_unit_variance() -> None:
    """With the usual +-1/K the covariance, and so the encoder's gradient, would be next to nothing."""
    vectors = Quantizer("ibq", dim=64, codebook_size=1024).codebook.vectors.detach()
    assert abs(float(vectors.std()) - 1) < 0.02 and abs(float(vectors.mean())) < 0.02


def selection(z: Tensor, codes: Tensor, valid: Tensor) -> Selection:
    selected = codes[:1].expand(len(z), -1)
    return Selection(latents=z, z=z, codes=codes, indices=valid.long() - 1, selected=selected, valid=valid)


def entropy_on_rank(rank: int) -> tuple[Tensor, Tensor, Tensor]:
    quantizer, z = problem()
    codes = quantizer.codebook.vectors.detach().requires_grad_()
    rows = z.detach()[:30] if rank == 0 else z.detach()[30:]
    loss = Entropy(diversity=2.0)
    value = loss(selection(rows, codes, torch.ones(len(rows), dtype=torch.bool)), rows)
    diversity_only = (value - Entropy(diversity=0.0)(selection(rows, codes, torch.ones(len(rows)).bool()), rows)) / 2
    diversity_only.backward()
    in_eval = loss.eval()(selection(rows, codes, torch.ones(len(rows), dtype=torch.bool)), rows)
    return diversity_only.detach(), codes.grad, in_eval.detach()


def test_entropy_of_the_mean_is_over_all_ranks(rank_pair: RankPair) -> None:
    """Uneven batches: a mean of the ranks' means, or of their entropies, would be another number."""
    results = rank_pair(entropy_on_rank)
    quantizer, z = problem()
    codes = quantizer.codebook.vectors.detach().requires_grad_()
    mean = (z.detach() @ codes.T / 0.01).softmax(1).mean(0)
    expected = (mean * mean.clamp(min=1e-300).log()).sum()
    expected.backward()
    for value, _, _ in results:
        torch.testing.assert_close(value, expected.detach(), rtol=0, atol=1e-12)
    averaged = (results[0][1] + results[1][1]) / 2  # as DistributedDataParallel averages
    torch.testing.assert_close(averaged, codes.grad, rtol=0, atol=1e-10)
    assert not torch.allclose(results[0][2], results[1][2])  # in eval each rank looks at its own


@pytest.mark.parametrize("column", [0, 1, pytest.param(2, marks=pytest.mark.slow)])
def test_what_the_released_epsilon_does_is_told(column: int) -> None:
    """The table of docs/quantizers.md: our loss, and the equation with 1e-5 in the logarithm."""
    text = (Path(__file__).parents[2] / "docs/quantizers.md").read_text()
    sizes, told = (
        [float(figure.replace(",", "")) for figure in re.findall(r"[\d,.]+", re.search(rf"\| {name} \|(.*)", text)[1])]
        for name in ("codes", "difference of the gradients")
    )
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(int(sizes[column]), 8, generator=generator)
    z = (0.02 * torch.randn(64, 8, generator=generator)).requires_grad_()
    (ours,) = torch.autograd.grad(Entropy()(selection(z, codes, torch.ones(64, dtype=torch.bool)), z), [z])
    logits = z @ codes.T / 0.01
    soft = logits.softmax(1)
    mean = soft.mean(0)
    released = -(soft * logits.log_softmax(1)).sum(1).mean() + (mean * (mean + 1e-5).log()).sum()
    (theirs,) = torch.autograd.grad(released, [z])
    difference = 100 * float((ours - theirs).norm() / theirs.norm())
    assert f"{difference:.2g}" == f"{told[column]:.2g}"

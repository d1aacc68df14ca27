"""Plain and EMA vector quantization against their equations (van den Oord et al. 2017), in float64."""

from functools import partial

import torch
from torch import Tensor

from tests.papers.equations import assert_computes
from vqkit import EMACodebook, Quantizer, RandomRestart


def equation_3(z: Tensor, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Quantized, indices, loss."""
    codes = weights["codebook.vectors"]
    indices = torch.stack([((codes - row) ** 2).sum(1).argmin() for row in z])
    chosen = codes[indices]
    loss = ((z.detach() - chosen) ** 2).mean() + 0.25 * ((z - chosen.detach()) ** 2).mean()
    return z + (chosen - z).detach(), indices, loss


def test_values_losses_and_gradients_of_equation_3() -> None:
    quantizer = Quantizer("vq", dim=5, codebook_size=7).double()
    torch.nn.init.normal_(quantizer.codebook.vectors)
    assert_computes(equation_3, quantizer, torch.randn(40, 5, dtype=torch.float64), atol=1e-14)


def plain_ema(**options) -> Quantizer:
    return Quantizer("ema", dim=3, codebook_size=6, maintenance=[], **options).double()


def test_one_ema_step_is_the_formula_of_counts_and_sums() -> None:
    quantizer = plain_ema(codebook=partial(EMACodebook, usage_decay=0.9))
    codebook = quantizer.codebook
    codebook.vectors.copy_(torch.randn(6, 3))
    codebook.usage.copy_(torch.rand(6) * 9 + 1)
    n, e = codebook.usage.clone(), codebook.vectors.clone()
    m = n.unsqueeze(1) * e
    z = torch.randn(50, 3, dtype=torch.float64)
    indices = quantizer(z).indices
    assert torch.equal(codebook.vectors, e), "records come after the search; nothing moves before the next step"
    quantizer.step()
    assigned = torch.nn.functional.one_hot(indices, 6).double()
    n = 0.9 * n + 0.1 * assigned.sum(0)
    m = 0.9 * m + 0.1 * assigned.mT @ z
    torch.testing.assert_close(codebook.usage, n, rtol=1e-14, atol=0)
    torch.testing.assert_close(codebook.vectors, m / n.unsqueeze(1), rtol=0, atol=1e-13)
    assert codebook.pending_counts.sum() == 0 and codebook.pending_sums.abs().sum() == 0


def test_the_raw_counts_of_a_step_sum_to_the_vectors_seen() -> None:
    quantizer = plain_ema()
    quantizer(torch.randn(50, 3), torch.arange(50) % 5 != 0)
    assert quantizer.codebook.pending_counts.sum() == 40


def test_on_stationary_data_codes_become_cluster_means() -> None:
    centers = 10 * torch.eye(3, dtype=torch.float64)
    data = centers.repeat_interleave(20, 0) + 0.1 * torch.randn(60, 3, dtype=torch.float64)
    quantizer = Quantizer("ema", dim=3, codebook_size=3, maintenance=[]).double()
    quantizer.initialize([data])
    for _ in range(1000):
        quantizer(data)
    means = torch.stack([data[20 * k : 20 * k + 20].mean(0) for k in range(3)])
    codes = quantizer.codebook.vectors
    torch.testing.assert_close(codes[codes.argmax(0)], means, rtol=0, atol=1e-4)


def test_a_restarted_code_is_a_vector_of_the_batch_with_mean_usage() -> None:
    quantizer = Quantizer("ema", dim=3, codebook_size=6, maintenance=[RandomRestart(0.5, every=1)])
    codebook = quantizer.codebook
    codebook.vectors[5] = 1000.0
    codebook.usage[5] = 0.01
    quantizer(torch.randn(64, 3))
    batch = torch.randn(64, 3)
    quantizer(batch)
    assert any(torch.equal(codebook.vectors[5], row) for row in batch)
    assert float(codebook.usage[5]) > 0.5 * float(codebook.usage.mean())

"""Gumbel-softmax against its equations (Jang et al. 2016; discrete VAE, Ramesh et al. 2021), materialised in
float64."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.largest_tensor import LargestTensor
from vqkit import GumbelSearch, GumbelSoftmax, Noise, Quantizer, RelaxedGumbelSoftmax, Selection, UniformPrior
from vqkit.kernels import gumbel, gumbel_nearest, gumbel_softmax, naive, softmax_rows

N, K, D = 40, 9, 5


def some_noise(count: int = N, *, step: int = 3) -> Noise:
    return Noise(seed=torch.tensor(7), step=torch.tensor(step), first=0, count=count)


def drawn(noise: Noise | None) -> Selection:
    torch.manual_seed(0)
    z = (0.7 * torch.randn(N, D, dtype=torch.float64)).requires_grad_()
    codes = torch.randn(K, D, dtype=torch.float64, requires_grad=True)
    indices, valid = GumbelSearch()(z, codes, noise), torch.ones(N, dtype=torch.bool)
    return Selection(latents=z, z=z, codes=codes, indices=indices, selected=codes[indices], valid=valid, noise=noise)


def gradients(value: Tensor, upstream: Tensor, selection: Selection) -> tuple[Tensor, ...]:
    return torch.autograd.grad((value * upstream).sum(), [selection.z, selection.codes], retain_graph=True)


assert_near = partial(torch.testing.assert_close, rtol=0, atol=1e-12)


@pytest.fixture(params=[2**20, 64], ids=["one_block", "blocks"])
def block(request, monkeypatch) -> None:
    monkeypatch.setattr(softmax_rows, "BLOCK", request.param)
    monkeypatch.setattr(softmax_rows, "FEWEST_ROWS", 1)
    monkeypatch.setattr(gumbel, "DRAW", request.param // 2)


@pytest.mark.parametrize("kind", [GumbelSoftmax, RelaxedGumbelSoftmax])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_value_and_gradients(block, temperature: float, kind: type[GumbelSoftmax]) -> None:
    noise, upstream = some_noise(), torch.randn(N, D, dtype=torch.float64)
    selection = drawn(noise)
    logits = selection.z @ selection.codes.T - torch.log(-torch.log1p(-noise.uniform(K)))
    assert torch.equal(selection.indices, logits.argmax(1))
    p = (logits / temperature).softmax(1)
    h = F.one_hot(logits.argmax(1), K).double()
    expected = (p if kind is RelaxedGumbelSoftmax else h - p.detach() + p) @ selection.codes
    value = kind(temperature)(selection)
    assert kind is RelaxedGumbelSoftmax or torch.equal(value, selection.codes[selection.indices])
    assert_near(value, expected)
    assert_near(gradients(value, upstream, selection), gradients(expected, upstream, selection))


def test_a_low_temperature_leaves_one_code() -> None:
    noise, upstream = some_noise(), torch.randn(N, D, dtype=torch.float64)
    selection = drawn(noise)
    value = RelaxedGumbelSoftmax(1e-4)(selection)
    h = F.one_hot(selection.indices, K).double()
    dz, dcodes = gradients(value, upstream, selection)
    assert_near((value, dz, dcodes), (selection.selected, torch.zeros_like(dz), h.T @ upstream))


def test_without_noise_it_is_straight_through_at_the_largest_dot_product() -> None:
    upstream = torch.randn(N, D, dtype=torch.float64)
    selection = drawn(None)
    p = (selection.z @ selection.codes.T / 0.5).softmax(1)
    h = F.one_hot(p.argmax(1), K).double()
    expected = (h - p.detach() + p) @ selection.codes
    for estimator in (GumbelSoftmax(0.5), RelaxedGumbelSoftmax(0.5)):
        value = estimator(selection)
        assert torch.equal(value, selection.codes[p.argmax(1)])
        assert_near(gradients(value, upstream, selection), gradients(expected, upstream, selection))


def test_draws_follow_the_softmax() -> None:
    """Pearson's statistic over 30,000 draws is beyond 25.7 in one of ten thousand runs (5 degrees of freedom)."""
    z, codes = torch.randn(1, D), 0.5 * torch.randn(6, D)
    count = 30_000
    indices = GumbelSearch()(z.expand(count, D), codes, some_noise(count))
    expected = count * (z @ codes.T)[0].softmax(0)
    assert expected.min() > 100
    assert ((indices.bincount(minlength=6) - expected).square() / expected).sum() < 25.7
    again = GumbelSearch()(z.expand(count, D), codes, some_noise(count, step=4))
    assert not torch.equal(again, indices)


def test_divergence_from_uniform() -> None:
    selection = drawn(None)
    p = (selection.z @ selection.codes.T).softmax(1)
    expected = (p * (p * 9).log()).sum(1).mean()
    loss = UniformPrior()(selection, selection.selected)
    assert_near(loss, expected)
    one = torch.ones((), dtype=torch.float64)
    assert_near(gradients(loss, one, selection), gradients(expected, one, selection))
    assert loss > 0.1


def test_divergence_is_zero_for_equal_logits_only() -> None:
    z, codes = torch.randn(4, D, dtype=torch.float64), torch.randn(1, D, dtype=torch.float64).expand(K, D)

    def loss(codes: Tensor) -> Tensor:
        indices = torch.zeros(4, dtype=torch.int64)
        valid = indices == 0
        return UniformPrior()(Selection(z, z, codes, indices, codes[indices], valid), z)

    assert abs(float(loss(codes))) < 1e-12
    assert loss(codes + 0.01 * torch.randn(K, D, dtype=torch.float64)) > 1e-6


def test_masked_vectors_get_no_gradient() -> None:
    valid, upstream = torch.arange(N) < 25, torch.randn(N, D, dtype=torch.float64)
    quantizer = Quantizer("gumbel", dim=D, codebook_size=K).double()
    y = torch.randn(N, D, dtype=torch.float64, requires_grad=True)
    (quantizer(y, valid).quantized * upstream).sum().backward()
    assert (y.grad[25:] == 0).all() and (y.grad[:25] != 0).any(1).all()


def test_the_method_and_its_weight() -> None:
    quantizer = Quantizer("gumbel", dim=D, codebook_size=K).double()
    z = torch.randn(N, D, dtype=torch.float64)
    output = quantizer(z)
    p = (z @ quantizer.codebook.vectors.T).softmax(1)
    assert_near(output.loss, 5e-4 * (p * (p * 9).log()).sum(1).mean())
    assert abs(float(Quantizer("gumbel", dim=64, codebook_size=512).codebook.vectors.detach().std()) - 1) < 0.02
    assert quantizer.estimator.temperature == 1.0


@pytest.mark.parametrize("relaxed", [False, True])
def test_nothing_of_all_vectors_by_all_codes_is_held(relaxed: bool, monkeypatch) -> None:
    monkeypatch.setattr(softmax_rows, "BLOCK", 4096)
    monkeypatch.setattr(softmax_rows, "FEWEST_ROWS", 1)
    monkeypatch.setattr(gumbel, "DRAW", 4096)
    z, codes, noise = torch.randn(512, 4), torch.randn(256, 4), some_noise()
    indices = None if relaxed else torch.zeros(512, dtype=torch.int64)
    numbers = noise.seed, noise.step, noise.first
    with LargestTensor() as record:  # inside the operators, which a mode would see whole
        gumbel._nearest(z, codes, *numbers)
        gumbel._forward(z, codes, indices, *numbers, 1.0)
        gumbel._backward(z, z, codes, indices, *numbers, 1.0)
    assert 8 * 4096 <= record.largest <= 8 * 8192 < 512 * 256  # numbers of 8 bytes


@pytest.mark.parametrize("indices", [None, torch.arange(N) % K])
def test_the_plain_form(indices: Tensor | None) -> None:
    z, codes, noise = torch.randn(N, D, dtype=torch.float64), torch.randn(K, D, dtype=torch.float64), some_noise()
    numbers = {"seed": noise.seed, "step": noise.step, "first": noise.first}
    uniform = noise.uniform(K)
    assert torch.equal(gumbel_nearest(z, codes, **numbers), naive.gumbel_nearest(z, codes, uniform))
    inputs = z.requires_grad_(), codes.requires_grad_()
    ours = gumbel_softmax(*inputs, indices, temperature=0.6, **numbers)
    theirs = naive.gumbel_softmax(*inputs, indices, uniform, temperature=0.6)
    upstream = torch.randn(N, D, dtype=torch.float64)
    assert_near(ours, theirs)
    assert_near(torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(theirs, inputs, upstream))

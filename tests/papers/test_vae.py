"""The bottleneck of a variational autoencoder against its equations (Kingma, Welling 2013), in float64."""

import copy
import math
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributions import Normal, kl_divergence
from torch.utils.checkpoint import checkpoint

from tests.refusals import refused
from vqkit import (
    AudioTokenizer,
    GaussianBottleneck,
    Quantizer,
    ResidualQuantizer,
    Tokenizer,
    TokenShardWriter,
    bake,
    without_quantization,
)
from vqkit.backbones.conv2d import ConvDecoder2d, ConvEncoder2d
from vqkit.backbones.gaussian import GaussianEncoder

SIZES = {"channels": 8, "channel_multipliers": (1,), "num_res_blocks": 1, "patch_size": 4, "norm_groups": 4}


def problem(batch: int = 4) -> Tensor:
    """(B, 6, D + D) moments."""
    return torch.randn(batch, 6, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def tokenizer(bottleneck=None) -> Tokenizer:
    torch.manual_seed(0)
    encoder = GaussianEncoder(ConvEncoder2d(dim=10, **SIZES))
    made = Tokenizer(encoder, bottleneck or GaussianBottleneck(5, channel_dim=1), ConvDecoder2d(dim=5, **SIZES))
    for parameter in [*made.encoder.parameters(), *made.decoder.parameters()]:  # some start at zero
        torch.nn.init.normal_(parameter, std=0.2)
    return made


def images() -> Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("masked", [False, True])
def test_divergence_and_gradients(masked: bool) -> None:
    """The sum over dimensions, the mean over the vectors that count; the sample's gradient is reparameterised."""
    x, y = (problem().requires_grad_() for _ in range(2))
    mask = torch.rand(4, 6) < 0.6 if masked else torch.ones(4, 6, dtype=torch.bool)
    upstream = torch.randn(4, 6, 5, dtype=torch.float64)
    output = GaussianBottleneck(5, kl_weight=0.3).double()(x, mask)
    (output.loss + (output.quantized * upstream).sum()).backward()

    mean, log_variance = y.chunk(2, -1)
    posterior = Normal(mean, (log_variance / 2).exp())
    kl = kl_divergence(posterior, Normal(torch.zeros_like(mean), 1.0)).sum(-1)[mask].mean()
    noise = ((output.quantized - mean) / posterior.scale).detach()
    sample = torch.where(mask.unsqueeze(-1), mean + posterior.scale * noise, 0)
    (0.3 * kl + (sample * upstream).sum()).backward()
    torch.testing.assert_close(output.losses["kl"], kl, rtol=1e-12, atol=0)
    torch.testing.assert_close(output.loss, 0.3 * kl, rtol=1e-12, atol=0)
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-9, atol=1e-12)
    assert (output.quantized[~mask] == 0).all() and output.indices.shape == (4, 6, 0)


def test_the_noise_is_standard_normal_and_new_in_each_forward() -> None:
    """Of n numbers the mean lies within 5 / sqrt(n) of 0, the variance within 5 sqrt(2 / n) of 1."""
    bottleneck, x = GaussianBottleneck(5), torch.zeros(1000, 10)
    first, second = (bottleneck(x).quantized for _ in range(2))
    both = torch.stack([first, second]).flatten()
    assert abs(both.mean()) < 5 / math.sqrt(len(both)) and abs(both.var() - 1) < 5 * math.sqrt(2 / len(both))
    assert abs((first * second).mean()) < 5 / math.sqrt(first.numel())
    assert len(both.unique()) > 0.99 * len(both)


def test_outside_of_training_it_is_the_mean() -> None:
    bottleneck, x = GaussianBottleneck(5).double(), problem()
    with torch.no_grad():
        assert torch.equal(bottleneck(x).quantized, x[..., :5])
    assert bottleneck.draws == 0
    assert torch.equal(bottleneck.eval()(x).quantized, x[..., :5]) and bottleneck(x).losses["kl"] > 0


@pytest.mark.parametrize(("log_variance", "bound"), [(-40.0, -30.0), (30.0, 20.0)])
def test_log_variances_end_at_the_published_bounds(log_variance: float, bound: float) -> None:
    x, y = (torch.cat([torch.zeros(1, 5), torch.full((1, 5), value)], -1).double() for value in (log_variance, bound))
    x.requires_grad_()
    bottlenecks = [GaussianBottleneck(5).double() for _ in range(2)]
    found, expected = (bottleneck(z) for bottleneck, z in zip(bottlenecks, (x, y), strict=True))
    assert torch.equal(found.quantized, expected.quantized) and torch.equal(found.loss, expected.loss)
    found.loss.backward()
    assert (x.grad == 0).all()


def test_vectors_that_are_not_finite_are_left_out() -> None:
    x = problem()
    x[0, 0, 7], x[1, 2, 1] = float("nan"), float("inf")
    bottleneck, other = (GaussianBottleneck(5).double() for _ in range(2))
    mask = x.isfinite().all(-1)
    found, expected = bottleneck(x), other(x.nan_to_num(), mask)
    assert found.nonfinite == 2 and torch.equal(found.quantized, expected.quantized)
    assert torch.equal(found.loss, expected.loss) and (found.quantized[~mask] == 0).all()


def test_a_resumed_run_and_a_recomputation_draw_the_same() -> None:
    whole, first = (GaussianBottleneck(5, seed=3) for _ in range(2))
    x = problem().float()
    expected = [whole(x).quantized for _ in range(3)]
    first(x)
    resumed = GaussianBottleneck(5, seed=3)
    resumed.load_state_dict(first.state_dict())
    assert torch.equal(resumed(x).quantized, expected[1])
    gradients = []
    for run in (resumed, partial(checkpoint, copy.deepcopy(resumed), use_reentrant=False)):
        y = x.clone().requires_grad_()
        output = run(y)
        (output.quantized.square().sum() + output.loss).backward()
        gradients.append(y.grad)
    assert torch.equal(*gradients) and not torch.equal(GaussianBottleneck(5, seed=4)(x).quantized, expected[0])


def sample_on_rank(rank: int, x: Tensor) -> Tensor:
    bottleneck = GaussianBottleneck(5)
    bottleneck(x[2 * rank :][:2])
    return bottleneck(x[2 * rank :][:2]).quantized


@pytest.mark.slow
def test_two_ranks_draw_what_one_process_does(rank_pair) -> None:
    x, bottleneck = problem(), GaussianBottleneck(5)
    bottleneck(x)
    assert torch.equal(torch.cat(rank_pair(sample_on_rank, x)), bottleneck(x).quantized)


def train(model: Tokenizer, x: Tensor) -> Tensor:
    """Two steps, and what it makes of the images afterwards."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):
        output = model(x)
        ((output.reconstruction - x).square().mean() + output.quantizer.loss).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()(x).reconstruction.detach()


def shard_on_rank(rank: int) -> Tensor:
    model = tokenizer(GaussianBottleneck(5, kl_weight=1e-3, channel_dim=1)).double()
    for part in (model.encoder, model.decoder, model):
        fully_shard(part)
    return train(model, images().double()[rank : rank + 1])


@pytest.mark.slow
def test_sharded_parts_train_as_whole_ones(rank_pair) -> None:
    model = tokenizer(GaussianBottleneck(5, kl_weight=1e-3, channel_dim=1)).double()
    expected = train(model, images().double())
    torch.testing.assert_close(torch.cat(rank_pair(shard_on_rank)), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("factor", [4, 8])
def test_the_balance_of_the_release(factor: int) -> None:
    """There errors are summed over pixels and divergences over positions; here both are means."""
    side, torch_sum = 32 // factor, partial(torch.sum, dtype=torch.float64)
    error, kl = torch.rand(2, 3, 32, 32), torch.rand(2, side, side) * 50
    released = (torch_sum(error) + 1e-6 * torch_sum(kl)) / 2
    ours = error.double().mean() + 1e-6 / (3 * factor**2) * kl.double().mean()
    torch.testing.assert_close(ours * 3 * 32**2, released, rtol=1e-12, atol=0)


# ------------------------------------------------------------------ in a tokenizer


def test_the_decoder_gets_samples_in_training_and_the_mean_otherwise() -> None:
    model, x = tokenizer(), images()
    mean = model.encoder(x)
    assert torch.equal(mean, model.encoder.moments(x)[:, :5]) and torch.equal(mean, model.encoder.encoder(x)[:, :5])
    first, second = (model(x) for _ in range(2))
    assert not torch.equal(first.reconstruction, second.reconstruction)
    with without_quantization(model):
        passed = model(x)
    assert passed.quantizer.loss == 0 and not passed.quantizer.losses
    model.eval()
    assert torch.equal(model(x).reconstruction, model.decoder(mean))
    assert torch.equal(passed.reconstruction, model.decoder(mean))
    model.initialize([])  # reads nothing
    for other in (bake(model), torch.export.export(model, (x,)).module()):
        assert torch.equal(other(x).reconstruction, model(x).reconstruction)


def test_saved_and_loaded(tmp_path) -> None:
    model = tokenizer(GaussianBottleneck(5, kl_weight=1e-3, channel_dim=1))
    model(images())
    model.save_pretrained(tmp_path)
    loaded = Tokenizer.from_pretrained(tmp_path)
    assert isinstance(loaded.encoder, GaussianEncoder) and loaded.quantizer.kl_weight == 1e-3
    assert torch.equal(loaded.train()(images()).reconstruction, model(images()).reconstruction)


def test_a_quantizer_in_its_place_sees_the_means() -> None:
    """The weights are those of the continuous model; the half that gives log-variances gets gradients of 0."""
    continuous = tokenizer().eval()
    discrete = tokenizer(Quantizer("vq", dim=5, codebook_size=16, channel_dim=1))
    for part in ("encoder", "decoder"):
        getattr(discrete, part).load_state_dict(getattr(continuous, part).state_dict())
    seen: list[Tensor] = []
    discrete.quantizer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    discrete.initialize([images()])
    output = discrete(images())
    assert torch.equal(seen[0], continuous(images()).quantizer.quantized)
    (output.reconstruction.square().mean() + output.quantizer.loss).backward()
    head = discrete.encoder.encoder.layers[-1]
    for gradient in (head.weight.grad, head.bias.grad):
        assert gradient[:5].abs().sum() > 0 and (gradient[5:] == 0).all()


# ------------------------------------------------------------------ what is refused


test_wrong_arguments_are_refused = refused(
    (lambda: GaussianBottleneck(5, kl_weight=-1.0), "kl_weight=-1.0: expected a number of at least 0"),
    (lambda: GaussianBottleneck(5)(torch.randn(2, 5)), "expected 2 x dim=5 channels on axis -1"),
    (lambda: GaussianEncoder(ConvEncoder2d(dim=5, **SIZES)), "encoder.dim=5: expected 2 D channels"),
    (
        lambda: Tokenizer(ConvEncoder2d(dim=10, **SIZES), GaussianBottleneck(5, channel_dim=1), torch.nn.Identity()),
        "encoder=ConvEncoder2d has no method moments that gives them: build it with dim=10",
    ),
    (
        lambda: Tokenizer(
            GaussianEncoder(ConvEncoder2d(dim=16, **SIZES)),
            GaussianBottleneck(5, channel_dim=1),
            torch.nn.Identity(),
        ),
        "encoder.dim=8 and quantizer.dim=5",
    ),
)


@pytest.mark.parametrize(
    ("call", "run"),
    [
        ("encode", lambda folder: tokenizer().encode(images())),
        ("decode", lambda folder: tokenizer().decode(torch.zeros(2, 4, 4, 0, dtype=torch.int64))),
        ("lookup", lambda folder: GaussianBottleneck(5).lookup(torch.zeros(2, 0, dtype=torch.int64))),
        ("TokenShardWriter", lambda folder: TokenShardWriter(folder, GaussianBottleneck(5))),
        ("ResidualQuantizer", lambda folder: ResidualQuantizer(lambda: GaussianBottleneck(5), 2)),
        (
            "AudioTokenizer",
            lambda folder: AudioTokenizer(
                torch.nn.Identity(), GaussianBottleneck(5), torch.nn.Identity(), sample_rate=16000
            ),
        ),
    ],
)
def test_what_needs_indices_is_refused(call: str, run, tmp_path) -> None:
    with pytest.raises(ValueError, match=f"{call} needs codes, and GaussianBottleneck has none: .* quantizer of dim=5"):
        run(tmp_path)

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from tests.refusals import refused
from tests.trainers.tiny import assert_equal
from trainers.core import AdaptiveWeight, LossBalancer
from vqkit.backbones.conv1d import ConvDecoder1d
from vqkit.backbones.conv2d import ConvDecoder2d


def two_terms(reconstruction: Tensor, target: Tensor) -> dict[str, Tensor]:
    return {
        "l1": (reconstruction - target).abs().mean(),
        "cube": (reconstruction - target).abs().pow(3).mean(),
    }


def balanced_gradient(balancer: LossBalancer, terms, weights: dict[str, float], at: Tensor) -> Tensor:
    reconstruction = at.clone().requires_grad_()
    balancer(terms(reconstruction), weights, reconstruction).backward()
    return reconstruction.grad


def test_is_the_published_equation() -> None:
    """Against EnCodec's sec. 3.4 in float64, over several steps with other batches."""
    balancer = LossBalancer(decay=0.9, total_norm=1.5)
    weights = {"l1": 1.0, "cube": 3.0}
    sums = {name: 0.0 for name in weights}
    count = 0.0
    for _ in range(4):
        target, at = torch.randn(2, 3, 1, 50, dtype=torch.float64) * torch.rand(1, dtype=torch.float64)
        got = balanced_gradient(balancer, lambda x, y=target: two_terms(x, y), weights, at)
        count = 0.9 * count + 1
        expected = torch.zeros_like(at)
        gradients = {
            "l1": (at - target).sign() / at.numel(),
            "cube": 3 * (at - target).abs() * (at - target) / at.numel(),
        }
        for name, gradient in gradients.items():
            sums[name] = 0.9 * sums[name] + sum(item.norm() for item in gradient)
            expected += 1.5 * weights[name] / 4.0 * gradient / (sums[name] / count)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-9)


def test_the_scale_of_a_term_does_not_matter() -> None:
    target, at = torch.randn(2, 3, 1, 50)
    weights = {"l1": 1.0, "cube": 1.0}
    plain = balanced_gradient(LossBalancer(), lambda x: two_terms(x, target), weights, at)

    def inflated(x: Tensor) -> dict[str, Tensor]:
        terms = two_terms(x, target)
        return terms | {"cube": 1000 * terms["cube"]}

    torch.testing.assert_close(balanced_gradient(LossBalancer(), inflated, weights, at), plain)
    tilted = balanced_gradient(LossBalancer(), lambda x: two_terms(x, target), {"l1": 1.0, "cube": 9.0}, at)
    assert (tilted - plain).norm() > 0.1 * plain.norm()
    everything = balanced_gradient(LossBalancer(), lambda x: two_terms(x, target), {"l1": 10.0, "cube": 10.0}, at)
    torch.testing.assert_close(everything, plain)
    waiting = balanced_gradient(
        LossBalancer(), lambda x: two_terms(x, target), {"l1": 1.0, "cube": 1.0, "not there": 5.0}, at
    )
    torch.testing.assert_close(waiting, plain)


def test_the_average_smooths() -> None:
    """A batch of ten times the gradient counts ten times at first sight, against an average of many."""
    balancer = LossBalancer(decay=0.99)
    at = torch.ones(1, 1, 10)

    def step(scale: float) -> Tensor:
        return balanced_gradient(balancer, lambda x: {"a": scale * x.sum()}, {"a": 1.0}, at).norm()

    for _ in range(100):
        torch.testing.assert_close(step(1.0), torch.tensor(1.0))
    assert 8.5 < step(10.0) < 9.6


def test_zero_gradients_stay_zero() -> None:
    balancer = LossBalancer()
    at = torch.randn(2, 1, 10)
    gradient = balanced_gradient(
        balancer, lambda x: {"a": (x - at).square().sum(), "b": x.sum()}, {"a": 1.0, "b": 1.0}, at
    )
    assert gradient.isfinite().all()
    torch.testing.assert_close(gradient.flatten(1).norm(dim=1), torch.full((2,), 0.25))
    unused = balanced_gradient(
        LossBalancer(), lambda x: {"a": torch.tensor(2.0, requires_grad=True) * 1}, {"a": 1.0}, at
    )
    assert not unused.any()


def test_weights_of_zero_are_shares_of_nothing() -> None:
    at = torch.randn(2, 1, 10)
    assert not balanced_gradient(LossBalancer(), lambda x: {"a": x.sum()}, {"a": 0.0}, at).any()
    only = balanced_gradient(LossBalancer(), lambda x: {"a": x.sum(), "b": -x.sum()}, {"a": 2.0, "b": 0.0}, at)
    assert (only > 0).all()


def test_the_value_is_the_weighted_sum() -> None:
    target, at = torch.randn(2, 3, 1, 50)
    reconstruction = at.clone().requires_grad_()
    terms = two_terms(reconstruction, target)
    expected = 2 * terms["l1"] + 5 * terms["cube"]
    weights = {"l1": 2.0, "cube": 5.0, "not there": 1.0}
    torch.testing.assert_close(LossBalancer()(terms, weights, reconstruction), expected)
    balancer = LossBalancer()
    with torch.no_grad():
        torch.testing.assert_close(balancer(terms, weights, at), expected)
    assert not balancer.state_dict()


def test_the_decoder_is_passed_backwards_once() -> None:
    decoder = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 20))
    passes, terms_passed = [], []
    for layer in decoder:
        layer.register_full_backward_hook(lambda *_: passes.append(1))
    latents, target = torch.randn(4, 1, 20, requires_grad=True), torch.randn(4, 1, 20)
    latents.register_hook(lambda _: passes.append(1))
    reconstruction = decoder(latents)
    terms = two_terms(reconstruction, target)
    terms["l1"].register_hook(lambda _: terms_passed.append(1))
    loss = LossBalancer()(terms, {"l1": 1.0, "cube": 1.0}, reconstruction)
    assert len(passes) == 0 and all(parameter.grad is None for parameter in decoder.parameters())
    loss.backward()
    assert len(passes) == 4 and len(terms_passed) == 1


def test_the_quantizer_loss_stays_outside() -> None:
    """What is added to the returned loss keeps its gradient, at its own size."""
    decoder = nn.Linear(20, 20)
    latents = torch.randn(4, 1, 20, requires_grad=True)
    reconstruction = decoder(latents)
    outside = latents.square().sum()
    balanced = LossBalancer()({"a": 1e4 * reconstruction.square().sum()}, {"a": 1.0}, reconstruction)
    (balanced + outside).backward()
    through_decoder = latents.grad - 2 * latents.detach()
    assert 0 < through_decoder.norm() < 4 * torch.linalg.matrix_norm(decoder.weight, 2)


def test_a_loss_scaler_multiplies_the_surrogate() -> None:
    target, at = torch.randn(2, 3, 1, 50)
    weights = {"l1": 1.0, "cube": 2.0}
    plain = balanced_gradient(LossBalancer(), lambda x: two_terms(x, target), weights, at)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    parameter = nn.Parameter(at.clone())
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    half = (parameter * 1).half()  # what a decoder gives under float16
    reconstruction = half.float()
    loss = LossBalancer()(two_terms(reconstruction, target), weights, reconstruction)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    torch.testing.assert_close(parameter.grad, plain, rtol=2e-2, atol=1e-5)


def test_numbers_that_are_not_finite_show_but_do_not_enter_the_average() -> None:
    balancer = LossBalancer(decay=0.9)
    at = torch.ones(1, 1, 10)
    weights = {"a": 1.0}
    balanced_gradient(balancer, lambda x: {"a": x.sum()}, weights, at)
    before = copy.deepcopy(balancer.state_dict())
    assert not balanced_gradient(balancer, lambda x: {"a": torch.inf * x.sum()}, weights, at).isfinite().any()
    assert all(torch.equal(value, before[name]) for name, value in balancer.state_dict().items())
    torch.testing.assert_close(
        balanced_gradient(balancer, lambda x: {"a": x.sum()}, weights, at).norm(), torch.tensor(1.0)
    )


def test_a_first_batch_that_is_not_finite_leaves_no_trace() -> None:
    balancer = LossBalancer()
    at = torch.ones(1, 1, 10)
    balanced_gradient(balancer, lambda x: {"a": torch.nan * x.sum()}, {"a": 1.0}, at)
    gradient = balanced_gradient(balancer, lambda x: {"a": 7 * x.sum()}, {"a": 1.0}, at)
    torch.testing.assert_close(gradient.norm(), torch.tensor(1.0))


def test_a_checkpoint_continues_the_averages() -> None:
    target = torch.randn(3, 1, 50)
    weights = {"l1": 1.0, "cube": 2.0}

    def steps(balancer: LossBalancer, count: int) -> Tensor:
        for number in range(count):
            at = (number + 1) * torch.linspace(-1, 1, 150).reshape(3, 1, 50)
            gradient = balanced_gradient(balancer, lambda x: two_terms(x, target), weights, at)
        return gradient

    first, resumed = LossBalancer(decay=0.9), nn.ModuleDict({"balancer": LossBalancer(decay=0.9)})
    steps(first, 3)
    resumed.load_state_dict(nn.ModuleDict({"balancer": first}).state_dict())
    fresh = steps(LossBalancer(decay=0.9), 1)
    expected = steps(first, 1)
    assert torch.equal(steps(resumed["balancer"], 1), expected) and not torch.allclose(fresh, expected)


def test_averages_stay_in_float32() -> None:
    balancer = LossBalancer()
    balanced_gradient(balancer, lambda x: {"a": x.sum()}, {"a": 1.0}, torch.ones(1, 1, 10))
    balancer.bfloat16()
    assert all(value.dtype == torch.float32 for value in balancer.state_dict().values())


test_bad_arguments_are_refused = refused(
    (lambda: LossBalancer(decay=1.0), "decay=1.0"),
    (lambda: LossBalancer(total_norm=0.0), "total_norm=0.0"),
    (lambda: AdaptiveWeight(maximum=0.0), "maximum=0.0"),
    (lambda: AdaptiveWeight(epsilon=-1.0), "epsilon=-1.0"),
    (lambda: watched(AdaptiveWeight(last_layer="out"), Decoder()), "with weights are hidden, output"),
    (lambda: watched(AdaptiveWeight(), nn.ReLU()), "with weights are none"),
    (lambda: watched(AdaptiveWeight(), parametrizations.weight_norm(nn.Linear(2, 2))), "did not use its kernel"),
    (lambda: LossBalancer()({}, {}, torch.zeros(1, 1, 2)), "terms is empty"),
    (lambda: LossBalancer()({"a": torch.zeros(())}, {}, torch.zeros(1, 1, 2)), "term 'a' has the weight None"),
    (lambda: LossBalancer()({"a": torch.zeros(())}, {"a": -1.0}, torch.zeros(1, 1, 2)), "at least 0"),
    (lambda: LossBalancer()({"a.b": torch.zeros(())}, {"a.b": 1.0}, torch.zeros(1, 1, 2)), "without dots"),
    (
        lambda: LossBalancer()({"a": torch.zeros(())}, {"a": 1.0}, torch.zeros(1, 1, 2).half()),
        r"cast it with reconstruction.float\(\)",
    ),
)


# ------------------------------------------------------------------ the adaptive weight


class Decoder(nn.Module):
    """A hidden layer, and one whose output is the reconstruction."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(4, 6)
        self.output = nn.Linear(6, 3)

    def forward(self, latents: Tensor) -> Tensor:
        return self.output(self.hidden(latents).tanh())


def watched(balancer: AdaptiveWeight, decoder: nn.Module) -> Tensor:
    with balancer.watching(decoder):
        pass
    return balancer.point(torch.zeros(()))


def adaptive_terms(balancer: AdaptiveWeight, decoder: nn.Module, latents: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    with balancer.watching(decoder):
        reconstruction = decoder(latents)
    terms = {
        "l2": reconstruction.square().mean(),
        "l1": reconstruction.abs().mean(),
        "adversarial": -(3 * reconstruction).sin().mean(),
    }
    return terms, balancer.point(reconstruction)


WEIGHTS = {"l2": 1.0, "l1": 0.5, "adversarial": 0.8, "not there": 3.0}


def test_adaptive_weight_is_the_published_equation() -> None:
    """Eq. 7 by gradients of the activations in front of the last layer, multiplied out by hand, in float64."""
    torch.manual_seed(0)
    decoder, latents = Decoder().double(), torch.randn(7, 4, dtype=torch.float64)
    balancer = AdaptiveWeight(epsilon=0.01)
    terms, point = adaptive_terms(balancer, decoder, latents)
    balancer(terms, WEIGHTS, point).backward()
    got = {name: parameter.grad.clone() for name, parameter in decoder.named_parameters()}

    hidden, x = decoder.hidden(latents).tanh(), decoder(latents)
    of_rest, of_game = (2 * x + 0.5 * x.sign()) / x.numel(), -3 * (3 * x).cos() / x.numel()
    ratio = (of_rest.T @ hidden).norm() / ((of_game.T @ hidden).norm() + 0.01)
    assert 0.1 < ratio < 10
    expected = of_rest + 0.8 * ratio * of_game
    torch.testing.assert_close(balancer.figures["adaptive_weight"].double(), ratio, rtol=1e-6, atol=0)
    torch.testing.assert_close(got["output.weight"], expected.T @ hidden, rtol=1e-6, atol=1e-9)
    behind = expected @ decoder.output.weight * (1 - hidden**2)
    torch.testing.assert_close(got["hidden.weight"], behind.T @ latents, rtol=1e-6, atol=1e-9)


def test_adaptive_weight_has_an_end_and_waits_for_the_adversary() -> None:
    decoder, latents = Decoder(), torch.randn(7, 4)
    balancer = AdaptiveWeight(maximum=2.0)
    terms, point = adaptive_terms(balancer, decoder, latents)
    faint = balancer(terms | {"adversarial": 1e-6 * terms["adversarial"]}, WEIGHTS, point)
    assert balancer.figures["adaptive_weight"] == 2
    del terms["adversarial"]
    torch.testing.assert_close(balancer(terms, WEIGHTS, point), terms["l2"] + 0.5 * terms["l1"])
    assert not balancer.figures and faint.requires_grad and not balancer.state_dict()


@pytest.mark.parametrize(
    ("arguments", "decoder", "expected"),
    [
        ({}, Decoder(), "output.weight"),
        ({"last_layer": "hidden"}, Decoder(), "hidden.weight"),
        ({}, ConvDecoder2d(dim=4, channels=32, channel_multipliers=[1], patch_size=4), "layers.8.weight"),
        ({}, ConvDecoder2d(dim=4, channels=32, channel_multipliers=[1], linear_path=True), "layers.8.weight"),
        ({}, ConvDecoder1d(dim=4, channels=8, strides=(4,), linear_path=True), "layers.7.convolution.weight"),
    ],
)
def test_the_last_layer_is_found(arguments: dict, decoder: nn.Module, expected: str) -> None:
    point = watched(AdaptiveWeight(**arguments), decoder)
    assert point is decoder.get_parameter(expected)
    point.requires_grad_(False)
    with pytest.raises(ValueError, match=f"{expected} is frozen"):
        watched(AdaptiveWeight(**arguments), decoder)


class Codec(nn.Module):
    """The decoder of a codec, whose kernels have weight norm."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = ConvDecoder1d(dim=4, channels=8, strides=(4,))

    def forward(self, latents: Tensor) -> Tensor:
        return self.decoder(latents[..., None].expand(-1, -1, 5))


REMOVE = {
    parametrizations.weight_norm: lambda layer: parametrize.remove_parametrizations(layer, "weight"),
    nn.utils.weight_norm: nn.utils.remove_weight_norm,
    nn.utils.spectral_norm: nn.utils.remove_spectral_norm,
}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize(
    ("make", "path", "direction", "norm"),
    [
        (Codec, "decoder.layers.7.convolution", "parametrizations.weight.original1", None),
        (Decoder, "output", "parametrizations.weight.original1", parametrizations.weight_norm),
        (Decoder, "output", "weight_v", nn.utils.weight_norm),
        (Decoder, "output", "weight_orig", nn.utils.spectral_norm),
    ],
    ids=["codec", "weight norm", "older weight norm", "older spectral norm"],
)
def test_the_kernel_is_what_is_applied(make, path: str, direction: str, norm) -> None:
    """However long the parameter is that gives it its direction: lambda is that of the same decoder without norms."""
    latents = torch.randn(7, 4, dtype=torch.float64)
    found = []
    for plain in (False, True):
        torch.manual_seed(0)
        decoder = make().double()
        if norm is not None:
            norm(decoder.get_submodule(path))
        with torch.no_grad():
            decoder.get_parameter(f"{path}.{direction}").mul_(5)
        if plain:
            REMOVE[norm or parametrizations.weight_norm](decoder.get_submodule(path))
        balancer = AdaptiveWeight()
        terms, point = adaptive_terms(balancer, decoder.eval(), latents)
        balancer(terms, WEIGHTS, point).backward()
        found.append(balancer.figures["adaptive_weight"])
        assert not list(decoder.get_submodule(path)._forward_hooks)
    torch.testing.assert_close(found[0], found[1], rtol=point.numel() * 2.0**-24, atol=0)  # norms are in float32


def test_gradients_of_all_uses_of_a_kernel_count() -> None:
    layer = parametrizations.weight_norm(nn.Linear(3, 3, bias=False))
    latents = torch.randn(5, 3)
    balancer = AdaptiveWeight()
    with balancer.watching(layer):
        reconstruction = layer(layer(latents))
    point = balancer.point(reconstruction)
    (gradient,) = torch.autograd.grad(reconstruction.sum(), point, retain_graph=True)
    kernel = layer.weight.detach().requires_grad_()
    (expected,) = torch.autograd.grad((latents @ kernel.T @ kernel.T).sum(), kernel)
    torch.testing.assert_close(gradient, expected)


# ------------------------------------------------------------------ two processes


def on_a_rank(rank: int, world: int) -> tuple[dict[str, Tensor], Tensor]:
    torch.manual_seed(0)
    balancer = LossBalancer(decay=0.9)
    for scale in (1.0, 5.0):
        target, at = (whole.chunk(world)[rank] for whole in scale * torch.randn(2, 4, 1, 50))
        gradient = balanced_gradient(balancer, lambda x, y=target: two_terms(x, y), {"l1": 1.0, "cube": 2.0}, at)
    return balancer.state_dict(), gradient


def test_ranks_share_the_averages_of_the_joined_batch(rank_pair) -> None:
    averages, gradient = on_a_rank(0, 1)
    (first, left), (second, right) = rank_pair(on_a_rank, 2)
    assert_equal(second, first)
    torch.testing.assert_close(first, averages)
    torch.testing.assert_close(torch.cat([left, right]) / 2, gradient)  # DistributedDataParallel averages over ranks

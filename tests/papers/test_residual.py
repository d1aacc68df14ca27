"""Residual quantization against its identities (SoundStream, AudioCraft, DAC), gradients in float64."""

import math
import weakref
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vqkit import (
    NSVQ,
    CodebookUsage,
    Commitment,
    DiVeQ,
    DoubleQuantization,
    Estimator,
    GroupedQuantizer,
    MeanOverChoices,
    MultiRateQuantizer,
    NestedLengths,
    Quantizer,
    QuantizerOutput,
    ResidualQuantizer,
    RotationTrick,
    Selection,
    StraightThrough,
    SumOverMembers,
)
from vqkit.methods import METHODS
from vqkit.parts.compatibility import IncompatibleParts

DIM = 6


def chain(stages: int = 3, method: str = "vq", **options) -> ResidualQuantizer:
    """Stages with random codebooks, each of a smaller scale than the one before."""
    quantizer = ResidualQuantizer(partial(Quantizer, method, dim=DIM, codebook_size=16), stages, **options).double()
    for number, stage in enumerate(quantizer.stages):
        torch.nn.init.normal_(stage.codebook.vectors, std=0.6**number)
    return quantizer


def vectors(count: int = 20) -> Tensor:
    return torch.randn(count, DIM, dtype=torch.float64)


# ---------------------------------------------------------------------- values


def test_the_value_is_algorithm_1_of_soundstream() -> None:
    quantizer = chain().eval()
    z = vectors()
    output = quantizer(z)
    residual, total, indices = z, torch.zeros_like(z), []
    for stage in quantizer.stages:
        codes = stage.codebook.vectors.detach()
        nearest = (residual.unsqueeze(1) - codes).square().sum(-1).argmin(-1)
        residual, total = residual - codes[nearest], total + codes[nearest]
        indices.append(nearest)
    assert torch.equal(output.indices, torch.stack(indices, dim=-1))
    torch.testing.assert_close(output.quantized, total, rtol=0, atol=1e-14)


def test_any_prefix_decodes_to_the_prefix_sum() -> None:
    quantizer = chain(4).eval()
    indices = quantizer.encode(vectors())
    total = torch.zeros(20, DIM, dtype=torch.float64)
    for levels in range(1, 5):
        total = total + quantizer.stages[levels - 1].decode(indices[:, levels - 1])
        assert torch.equal(quantizer.decode(indices[:, :levels]), total)


def test_stage_i_starts_from_the_k_means_of_what_the_stages_before_leave_over() -> None:
    """Not of the data, and not of a batch that the stage before has just become the centres of."""
    data = torch.randn(400, DIM) + 3
    quantizer = ResidualQuantizer([partial(Quantizer, "vq", dim=DIM, codebook_size=size) for size in (16, 8, 4)])
    quantizer.initialize([data[:150], data[150:]], seed=5)
    for number, size in enumerate((16, 8, 4)):
        alone = Quantizer("vq", dim=DIM, codebook_size=size)
        alone.initialize([data], seed=5 + number)
        codebook = quantizer.stages[number].codebook
        torch.testing.assert_close(codebook.vectors, alone.codebook.vectors, rtol=0, atol=1e-6)
        torch.testing.assert_close(codebook.usage.sum(), torch.tensor(200.0))  # of a batch
        data = data - alone.decode(alone.encode(data)).detach()


# ---------------------------------------------------------------------- gradients


def encoder_gradient(quantizer: ResidualQuantizer, z: Tensor, upstream: Tensor) -> Tensor:
    z = z.clone().requires_grad_()
    return torch.autograd.grad((quantizer(z).quantized * upstream).sum(), [z])[0]


@pytest.mark.parametrize("stages", [1, 4])
def test_another_estimator_sees_the_sum(stages: int) -> None:
    """d (lambda R z) / d z, with the rotation from z to the sum of the codes."""
    quantizer = chain(stages, estimator=RotationTrick(180.0))
    z, upstream = vectors(), vectors()
    result = encoder_gradient(quantizer, z, upstream)
    quantized = quantizer.decode(quantizer.encode(z)).detach()
    torch.testing.assert_close((result * z).sum(1), (upstream * quantized).sum(1))
    torch.testing.assert_close(result.norm(dim=1), upstream.norm(dim=1) * quantized.norm(dim=1) / z.norm(dim=1))


@pytest.mark.parametrize("stages", [1, 2, 4])
def test_the_jacobian_of_projected_stages_is_that_of_dac(stages: int) -> None:
    """I - prod_i (I - W_out,i W_in,i), later stages to the left; the gradient is its transpose."""
    build = partial(Quantizer, "vq", dim=DIM, codebook_size=16, codebook_dim=2)
    quantizer = ResidualQuantizer(build, stages, estimator=None).double()
    z, upstream = vectors(), vectors()
    left_over = torch.eye(DIM, dtype=torch.float64)
    for stage in quantizer.stages:
        left_over = (
            torch.eye(DIM, dtype=torch.float64) - stage.project_out.weight @ stage.project_in.weight
        ) @ left_over
    jacobian = torch.eye(DIM, dtype=torch.float64) - left_over
    torch.testing.assert_close(
        encoder_gradient(quantizer, z, upstream), upstream @ jacobian.detach(), rtol=0, atol=1e-13
    )


def test_without_an_estimator_the_decoder_trains_every_projection() -> None:
    build = partial(Quantizer, "vq", dim=DIM, codebook_size=16, codebook_dim=2)
    quantizer = ResidualQuantizer(build, 3, estimator=None)
    quantizer(torch.randn(20, DIM)).quantized.square().sum().backward()
    for stage in quantizer.stages:
        assert stage.project_in.weight.grad.abs().sum() > 0 and stage.project_out.weight.grad.abs().sum() > 0


def test_the_commitment_of_stage_i_pulls_z_to_the_sum_of_the_first_i_codes() -> None:
    quantizer = chain(4)
    z = vectors()
    for number in range(1, 5):
        part = ResidualQuantizer(lambda: Quantizer("vq", dim=DIM, codebook_size=16), number).double()
        part.load_state_dict({key: value for key, value in quantizer.state_dict().items() if key in part.state_dict()})
        x = z.clone().requires_grad_()
        output = part(x)
        (gradient,) = torch.autograd.grad(output.loss, [x])  # the codebook losses do not reach z
        prefixes = [part.decode(output.indices[:, : stage + 1]).detach() for stage in range(number)]
        pulls = [0.25 * 2 * (z - prefix) / z.numel() for prefix in prefixes]
        torch.testing.assert_close(gradient, sum(pulls) / number, rtol=0, atol=1e-14)


def test_the_codebook_loss_of_stage_i_reaches_stage_i_only() -> None:
    quantizer = chain(3)
    z = vectors()
    output = quantizer(z)
    output.losses["codebook"].backward()
    before = torch.zeros_like(z)
    for number, stage in enumerate(quantizer.stages):
        chosen = stage.codebook.vectors.detach()[output.indices[:, number]]
        pulls = 2 * (chosen - (z - before)) / z.numel() / 3
        expected = torch.zeros(16, DIM, dtype=torch.float64).index_add_(0, output.indices[:, number], pulls)
        torch.testing.assert_close(stage.codebook.vectors.grad, expected, rtol=0, atol=1e-14)
        before = before + chosen


# ---------------------------------------------------------------------- dropout


def depths(indices: Tensor) -> Tensor:
    """(B, T, stages) -> (B,) stages used by each sample: a prefix, the same everywhere in it."""
    used = indices >= 0
    depth = used.sum(-1)
    assert (depth == depth[:, :1]).all()
    assert torch.equal(used, torch.arange(indices.shape[-1]) < depth.unsqueeze(-1))
    return depth[:, 0]


@pytest.mark.parametrize(("batch", "dropout"), [(1, 0.5), (16, 1.0), (16, 0.2)])
def test_the_depth_is_uniform_with_the_probability_of_dropout_for_every_sample(batch: int, dropout: float) -> None:
    quantizer = chain(4, dropout=dropout)
    x = torch.randn(batch, 2, DIM)
    drawn = torch.cat([depths(quantizer(x).indices) for _ in range(240 if batch == 1 else 60)])
    share = torch.bincount(drawn, minlength=5)[1:] / len(drawn)
    expected = torch.full((4,), dropout / 4) + torch.tensor([0, 0, 0, 1 - dropout])
    assert (share - expected).abs().max() < 4 * math.sqrt(0.25 / len(drawn))


def test_samples_of_a_batch_and_steps_draw_independently() -> None:
    quantizer = chain(4, dropout=1.0)
    drawn = torch.stack([depths(quantizer(torch.randn(64, 1, DIM)).indices) for _ in range(64)]).double()
    for first, second in ((drawn[:, :-1], drawn[:, 1:]), (drawn[:-1], drawn[1:])):
        correlation = torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]
        assert abs(float(correlation)) < 0.06


def test_two_quantizers_of_other_seeds_draw_differently() -> None:
    x = torch.randn(64, 1, DIM)
    assert not torch.equal(
        depths(chain(4, dropout=1.0, seed=0)(x).indices), depths(chain(4, dropout=1.0, seed=1)(x).indices)
    )


def test_without_dropout_or_in_eval_every_stage_is_used() -> None:
    x = torch.randn(32, 2, DIM)
    assert (chain(4)(x).indices >= 0).all()
    quantizer = chain(4, dropout=1.0)
    assert (quantizer.eval()(x).indices >= 0).all() and (quantizer.train().encode(x) >= 0).all()


def test_a_dropped_stage_has_no_value_no_loss_no_gradient_and_no_statistics() -> None:
    quantizer = chain(4, method="ema", dropout=1.0)
    before = [stage.codebook.vectors.clone() for stage in quantizer.stages]
    x = torch.randn(8, 5, DIM, dtype=torch.float64)
    output = quantizer(x)
    used = output.indices >= 0
    assert 0 < int(used[..., 1:].sum()) < used[..., 1:].numel()
    torch.testing.assert_close(output.quantized, quantizer.decode(output.indices), rtol=0, atol=1e-14)
    residual, losses = x, []
    for number, stage in enumerate(quantizer.stages):
        rows = used[..., number]
        assert int(stage.codebook.pending_counts.sum()) == int(rows.sum())
        expected = torch.zeros(16, DIM, dtype=torch.float64).index_add_(
            0, output.indices[..., number][rows], residual[rows]
        )
        torch.testing.assert_close(stage.codebook.pending_sums, expected, rtol=0, atol=1e-13)
        residual = residual - stage.decode(output.indices[..., number])
        losses.append((residual.square().mean(-1) * rows).mean())
        assert torch.equal(stage.codebook.vectors, before[number])
    torch.testing.assert_close(output.losses["commitment"], sum(losses) / 4, rtol=0, atol=1e-14)
    torch.testing.assert_close(output.loss, 0.25 * sum(losses) / 4, rtol=0, atol=1e-14)


def test_losses_of_dropout_are_those_of_dac() -> None:
    """The sum over stages of the mean over the batch, in which a sample that drops a stage counts as 0."""
    quantizer = chain(4, dropout=1.0, reduction=SumOverMembers())
    z = torch.randn(7, 5, DIM, dtype=torch.float64, requires_grad=True)
    output = quantizer(z)
    depth = depths(output.indices)
    assert len(set(depth.tolist())) > 1
    y, before, total = z.detach().clone().requires_grad_(), torch.zeros(7, 5, DIM, dtype=torch.float64), 0
    for number, stage in enumerate(quantizer.stages):
        mask = (number < depth).double()
        chosen = F.embedding(output.indices[..., number].clamp(min=0), stage.codebook.vectors)
        residual = y - before
        commitment = F.mse_loss(residual, chosen.detach(), reduction="none").mean([1, 2])
        codebook = F.mse_loss(chosen, residual.detach(), reduction="none").mean([1, 2])
        total = total + ((0.25 * commitment + codebook) * mask).mean()
        before = before + chosen.detach() * mask[:, None, None]
    ours = torch.autograd.grad(output.loss, [z, *quantizer.parameters()])
    theirs = torch.autograd.grad(total, [y, *quantizer.parameters()])
    torch.testing.assert_close(output.loss, total, rtol=0, atol=1e-13)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)


@pytest.mark.parametrize("drawn", [(3, 3, 3), (4, 1, 2)], ids=["for the batch", "for each sample"])
def test_losses_of_dropout_are_those_of_encodec(drawn: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean over the stages that a batch uses; where each sample has its own number, over all choices."""
    quantizer = chain(4, "ema", dropout=1.0, reduction=MeanOverChoices())
    monkeypatch.setattr(quantizer, "sample_depths", lambda *_: torch.tensor(drawn))
    z = torch.randn(3, 5, DIM, dtype=torch.float64)
    output = quantizer(z)
    squares, left_over = [], z
    for number, stage in enumerate(quantizer.stages):
        left_over = left_over - stage.decode(output.indices[..., number])
        squares.extend(left_over[sample].square().mean() for sample in range(3) if number < drawn[sample])
    assert len(squares) == sum(drawn)
    torch.testing.assert_close(output.losses["commitment"], sum(squares) / len(squares), rtol=0, atol=1e-14)
    torch.testing.assert_close(output.loss, 0.25 * output.losses["commitment"], rtol=0, atol=1e-14)


def test_every_parameter_is_in_the_graph_also_of_stages_that_were_dropped() -> None:
    quantizer = chain(4, dropout=1.0)
    for _ in range(4):
        quantizer.zero_grad()
        output = quantizer(torch.randn(1, 3, DIM, requires_grad=True))
        output.loss.backward()
        gradients = [stage.codebook.vectors.grad for stage in quantizer.stages]
        depth = int(depths(output.indices))
        assert all(gradient is not None for gradient in gradients)
        assert [bool(gradient.any()) for gradient in gradients] == [number < depth for number in range(4)]


# ---------------------------------------------------------------------- what may be a stage


@pytest.mark.parametrize("method", [name for name in METHODS if name != "cascaded"])
def test_every_method_can_be_a_stage(method: str) -> None:
    """With one estimator over the sum where that cuts nothing off, else with each stage's own; `cascaded` alone is
    refused: what it leaves over depends on values that are no part of the search."""
    build = partial(Quantizer, method, dim=DIM, codebook_size=16)
    sample = build()
    own = sample.has_projection or sample.estimator.trains_codebook
    if own:
        with pytest.raises(IncompatibleParts, match="estimator=None"):
            ResidualQuantizer(build, 3)
    over_the_sum = {"estimator": NSVQ()} if method == "nsvq" else {"estimator": None} if own else {}
    quantizer = ResidualQuantizer(build, 3, **over_the_sum)
    data = torch.randn(256, DIM)
    quantizer.initialize([data])
    parameters = list(quantizer.parameters())
    optimizer = torch.optim.Adam(parameters, lr=1e-3) if parameters else None
    for _ in range(3):
        x = torch.randn(64, DIM, requires_grad=True)
        output = quantizer(x)
        (output.quantized.square().mean() + output.loss).backward()
        assert x.grad.any() and torch.isfinite(x.grad).all() and torch.isfinite(output.loss)
        if optimizer:
            optimizer.step()
            optimizer.zero_grad()
        quantizer.step()
    indices = quantizer.eval().encode(data)
    assert indices.shape == (256, 3) and torch.equal(quantizer.decode(indices), quantizer(data).quantized)
    errors = [float((data - quantizer.decode(indices[:, :n]).detach()).square().mean()) for n in (1, 3)]
    assert errors[1] < errors[0] or sample.has_projection  # which starts at random, and has to learn


def nested(estimator: Estimator | None, **inner) -> ResidualQuantizer:
    stage = partial(Quantizer, "ema", dim=DIM, codebook_size=16)
    return ResidualQuantizer(partial(ResidualQuantizer, stage, 2, **inner), 3, estimator=estimator)


@pytest.mark.parametrize("estimator", [StraightThrough(), None], ids=["one estimator", "each its own"])
def test_residual_quantizers_nest_and_equal_the_flat_chain(estimator: Estimator | None) -> None:
    outer = nested(estimator)
    data = torch.randn(300, DIM)
    outer.initialize([data])
    flat = ResidualQuantizer(partial(Quantizer, "ema", dim=DIM, codebook_size=16), 6)
    for number, stage in enumerate(flat.stages):
        stage.load_state_dict(outer.stages[number // 2].stages[number % 2].state_dict())
    x = torch.randn(20, DIM, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    outputs: list[QuantizerOutput] = [outer(x), flat(y)]
    assert outer.num_codebooks == 6 and torch.equal(outputs[0].indices, outputs[1].indices)
    torch.testing.assert_close(outputs[0].quantized, outputs[1].quantized, rtol=0, atol=1e-5)
    torch.testing.assert_close(outputs[0].losses["commitment"], outputs[1].losses["commitment"])
    for output in outputs:
        output.quantized.square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-5, atol=1e-5)
    for levels in range(1, 7):
        prefix = outputs[0].indices[:, :levels]
        torch.testing.assert_close(outer.decode(prefix), flat.decode(prefix), rtol=0, atol=1e-5)
    assert outer.eval().health().keys() >= {"stage_0/stage_1/underused"}


def test_dropout_inside_and_outside_of_a_nest_leaves_out_what_either_drops() -> None:
    outer = ResidualQuantizer(partial(nested, None, dropout=0.5, seed=1), 2, dropout=0.5)
    output = outer(torch.randn(40, 3, DIM))
    left_out = (output.indices == -1).float().mean((0, 1))
    assert left_out[0] == 0 and (left_out[6:] > 0.1).all() and left_out.max() < 0.7
    torch.testing.assert_close(output.quantized, outer.decode(output.indices), rtol=0, atol=1e-5)


def test_a_nest_that_hides_projections_from_the_decoder_is_refused() -> None:
    projected = partial(Quantizer, "vq", dim=DIM, codebook_size=16, codebook_dim=2)
    with pytest.raises(IncompatibleParts, match="estimator=None"):
        ResidualQuantizer(partial(ResidualQuantizer, projected, 2, estimator=None), 2)


def alternating(*builders) -> partial:
    """A factory that builds another stage at each call."""
    remaining = iter(builders)
    return partial(lambda: next(remaining)())


@pytest.mark.parametrize("spelling", ["a list", "a factory"])
def test_stages_of_different_sizes(spelling: str) -> None:
    """Each level has its own range, and one search of all stages gives the indices of the stages one by one."""
    sizes = (64, 16, 5)
    builders = [partial(Quantizer, "ema", dim=DIM, codebook_size=size) for size in sizes]
    quantizer = ResidualQuantizer(builders) if spelling == "a list" else ResidualQuantizer(alternating(*builders), 3)
    assert quantizer.codebook_sizes == sizes and quantizer.codebook_size == 64 and quantizer.num_codebooks == 3
    data = torch.randn(500, DIM)
    quantizer.initialize([data])
    output = quantizer.eval()(data)
    assert "all stages in one call" in repr(quantizer) and torch.equal(quantizer.encode(data), output.indices)
    assert [len(level.unique()) for level in output.indices.unbind(-1)] == list(sizes)
    assert torch.equal(quantizer.decode(output.indices), output.quantized)
    errors = [float((data - quantizer.decode(output.indices[:, :n])).square().mean()) for n in (1, 2, 3)]
    assert errors[0] > errors[1] > errors[2]
    for wrong in ([64, 0, 0], [0, 16], [0, 0, 5]):
        with pytest.raises(ValueError, match=rf"0 \.\.\. {sizes[len(wrong) - 1 if wrong[0] == 0 else 0] - 1}"):
            quantizer.decode(torch.tensor([wrong]))
    usage = CodebookUsage(quantizer.codebook_sizes)
    usage.update(output.indices)
    assert usage.compute()["usage_per_level"] == [1, 1, 1]


@pytest.mark.parametrize("order", [("vq", "ema"), ("ema", "vq")])
def test_stages_with_other_losses_report_every_loss(order: tuple[str, str]) -> None:
    quantizer = ResidualQuantizer([partial(Quantizer, method, dim=DIM, codebook_size=16) for method in order])
    assert quantizer(torch.randn(20, DIM)).losses.keys() == {"commitment", "codebook"}


def test_one_substitution_of_the_sum() -> None:
    """y = z + |s - z| n, with s the sum of the codes: the encoder and every stage's codes are trained by its length."""
    quantizer = ResidualQuantizer(partial(Quantizer, "nsvq", dim=DIM, codebook_size=8), 3, estimator=NSVQ()).double()
    quantizer.initialize([torch.randn(500, DIM, dtype=torch.float64)])
    z = torch.randn(20, DIM, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(20, DIM, dtype=torch.float64)
    output = quantizer(z)
    (output.quantized * upstream).sum().backward()
    codes = [stage.codebook.vectors for stage in quantizer.stages]
    total = sum(book[output.indices[:, level]] for level, book in enumerate(codes)).detach()
    residual, direction = z.detach(), output.quantized.detach() - z.detach()
    torch.testing.assert_close(direction.norm(dim=1), (total - residual).norm(dim=1), rtol=0, atol=1e-12)
    n, u = F.normalize(direction, dim=1), F.normalize(total - residual, dim=1)
    along = (upstream * n).sum(1, keepdim=True) * u
    torch.testing.assert_close(z.grad, upstream - along, rtol=0, atol=1e-12)
    for level, book in enumerate(codes):
        expected = torch.zeros_like(book).index_add_(0, output.indices[:, level], along)
        torch.testing.assert_close(book.grad, expected, rtol=0, atol=1e-12)
    for level, book in enumerate(codes):  # each stage was given what the codes before it leave over, not the noise
        assert torch.equal(output.indices[:, level], torch.cdist(residual, book).argmin(1))
        residual = residual - book[output.indices[:, level]].detach()


def test_stages_of_noise_learn_through_the_sum() -> None:
    data = torch.randn(2000, 4) * torch.tensor([3.0, 2.0, 1.0, 0.5])
    quantizer = ResidualQuantizer(partial(Quantizer, "nsvq", dim=4, codebook_size=16), 2, estimator=NSVQ())
    quantizer.initialize([data])

    def error() -> float:
        return float((quantizer.decode(quantizer.encode(data)).detach() - data).square().mean())

    before = error()
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=3e-3)
    for rows in torch.randint(len(data), (300, 256)):
        output = quantizer(data[rows])
        optimizer.zero_grad()
        (output.quantized - data[rows]).square().mean().backward()
        optimizer.step()
    assert error() < before


def test_chains_of_a_product_have_noise_of_their_own() -> None:
    chain_of = partial(ResidualQuantizer, partial(Quantizer, "nsvq", dim=4, codebook_size=16), 2, estimator=NSVQ())
    x = torch.randn(20, 4)
    first, second = (part - x for part in GroupedQuantizer(chain_of, 2)(torch.cat([x, x], -1)).quantized.chunk(2, -1))
    assert not torch.nn.functional.cosine_similarity(first, second).gt(0.999).any()  # codes are equal


def test_lengths_of_another_number_of_stages_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 3, one for each that can be left out"):
        chain(dropout=1.0, lengths=NestedLengths([0.0, 0.5]))


def test_a_shared_estimator_has_no_mode() -> None:
    """The default is one instance for all: the eval mode of one quantizer is not that of another."""
    stage = partial(Quantizer, "ema", dim=4, codebook_size=8)
    one, other = ResidualQuantizer(stage, 2).eval(), ResidualQuantizer(stage, 2)
    assert not one.training and all(module.training for module in other.modules())


@pytest.mark.parametrize("own_estimators", [False, True])
def test_encode_is_forward_also_where_what_is_left_over_has_no_squared_length_in_float32(own_estimators: bool) -> None:
    """Codes of 3e19 leave residuals behind whose squares overflow: both go on with them, to the same indices."""
    quantizer = ResidualQuantizer(
        partial(Quantizer, "vq", dim=4, codebook_size=16), 3, estimator=None if own_estimators else StraightThrough()
    ).eval()
    with torch.no_grad():
        for number, stage in enumerate(quantizer.stages):
            stage.codebook.vectors.copy_(torch.randn(16, 4) * (3e19 if number < 2 else 1.0))
    x = 4e18 * torch.randn(32, 4).clamp(-2, 2)
    found = quantizer(x).indices
    assert (found >= 0).all() and len(found[:, 1].unique()) > 1
    assert torch.equal(found, quantizer.encode(x))
    assert torch.equal(quantizer(x).quantized, quantizer.decode(found))


# ---------------------------------------------------------------------- memory


class Watched(Commitment):
    """Counts the selections of earlier members that are still in memory."""

    def __init__(self, seen: list[weakref.ref[Selection]], alive: list[int]) -> None:
        super().__init__()
        self.seen, self.alive = seen, alive

    def forward(self, selection: Selection, quantized: Tensor) -> Tensor:
        self.alive.append(sum(earlier() is not None for earlier in self.seen))
        self.seen.append(weakref.ref(selection))
        return super().forward(selection, quantized)


@pytest.mark.parametrize("composite", [ResidualQuantizer, GroupedQuantizer])
def test_what_a_member_held_is_free_once_its_losses_are_known(composite: type) -> None:
    """Until the backward only what that needs is kept."""
    alive: list[int] = []
    loss = Watched([], alive)
    quantizer = composite(lambda: Quantizer("ema", dim=4, codebook_size=8, losses=[loss]), 3)
    output = quantizer(torch.randn(5, quantizer.dim, requires_grad=True))
    assert alive == [0, 0, 0] and output.loss.requires_grad


@pytest.mark.parametrize("composite", [ResidualQuantizer, partial(MultiRateQuantizer, strides=[4, 2, 1])])
def test_a_stage_keeps_what_it_was_given_and_no_vectors_that_the_sum_has(composite: Callable) -> None:
    """Of a stage (N, D) once, for its losses: not the codes, nor what its estimator would have made of them."""
    stages = {"num_stages": 3} if composite is ResidualQuantizer else {}
    quantizer = composite(lambda: Quantizer("ema", dim=64, codebook_size=8), **stages)
    latents, codes = torch.randn(2, 32, 64), 8 * 64 * 4  # bytes of a codebook
    made = quantizer.quantize(latents.requires_grad_(), torch.ones(2, 32, dtype=torch.bool))
    for member in made.members:
        held = [member.vectors, *vars(member.selection).values()]
        storages = [part.untyped_storage() for part in held if isinstance(part, Tensor) and part.is_floating_point()]
        sizes = {storage.data_ptr(): storage.nbytes() for storage in storages if storage.nbytes() > codes}
        assert sum(sizes.values()) <= latents.untyped_storage().nbytes()
    chosen = quantizer.lookup(made.indices)
    assert torch.equal(quantizer.chosen_vectors(made), chosen) and torch.equal(made.vectors, chosen)


@pytest.mark.parametrize("method", ["vq", "ema"])
def test_a_code_that_diverged_stays_out_of_the_loss_where_nothing_chose_it(method: str) -> None:
    """Also where a vector is masked, whose index -1 stands for no code."""
    quantizer = ResidualQuantizer(lambda: Quantizer(method, dim=4, codebook_size=8, maintenance=[]), 3)
    for stage in quantizer.stages:
        with torch.no_grad():
            stage.codebook.vectors[0] = torch.nan
    latents = torch.randn(2, 6, 4, requires_grad=True)
    output = quantizer(latents, torch.arange(6).expand(2, 6) < 4)
    output.loss.backward()
    assert (output.indices != 0).all() and output.loss.isfinite() and latents.grad.isfinite().all()


def test_a_loss_that_reads_what_the_stage_passes_on_gets_it_under_an_estimator_over_the_sum() -> None:
    """The gradient of double quantization goes through the soft choice of the stage's estimator, to all codes."""
    losses = [DoubleQuantization()]
    quantizer = ResidualQuantizer(
        lambda: Quantizer("ibq", dim=4, codebook_size=8, losses=losses),
        1,
        estimator=DiVeQ(),
        reduction=SumOverMembers(),
    )
    latents = torch.randn(5, 4)
    (stage,) = quantizer.stages
    quantizer(latents).loss.backward()
    found, stage.codebook.vectors.grad = stage.codebook.vectors.grad, None
    stage(latents).loss.backward()
    assert (found.abs().sum(1) > 0).all()
    torch.testing.assert_close(found, stage.codebook.vectors.grad)

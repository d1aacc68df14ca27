"""What every quantizer promises, whatever it is made of (properties P1-P12 of any quantizer)."""

import copy
import io
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.contract.cases import (
    CASES,
    DIM,
    SLOW,
    Case,
    draws_in_training,
    each,
    every_case,
    pointwise,
    trains_codebook,
)
from tests.contract.worlds import world  # noqa: F401  # a fixture
from vqkit import (
    FSQ,
    BaseQuantizer,
    ClusterReinit,
    LBGSplitting,
    Maintenance,
    Quantizer,
    RandomRestart,
    ResidualQuantizer,
    Selection,
    without_quantization,
)


def initialized(case: Case, **options) -> BaseQuantizer:
    torch.manual_seed(0)
    quantizer = case.build(**options)
    quantizer.initialize([case.example(64, seed=1).movedim(1 if case.spatial else -1, quantizer.channel_dim)])
    return quantizer


def state_of(module: torch.nn.Module) -> dict[str, Tensor]:
    """Everything that could change: parameters, all buffers, and the counters of the extra state."""
    return {name: value.clone() for name, value in (*module.state_dict().items(), *module.named_buffers())}


def assert_same_state(before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
    assert before.keys() == after.keys()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert not changed


@every_case
def test_output_has_the_shapes_and_dtypes_it_says(case: Case) -> None:
    quantizer = initialized(case)
    x = case.example().requires_grad_()
    output = quantizer(x)
    assert output.quantized.shape == x.shape and output.quantized.dtype == x.dtype
    assert output.indices.dtype == torch.int64
    assert output.loss.shape == () and all(value.shape == () for value in output.losses.values())
    assert output.nonfinite.dtype == torch.int64 and int(output.nonfinite) == 0
    if not case.spatial:
        levels = (quantizer.num_codebooks,) if quantizer.level_axis else ()
        assert output.indices.shape == (*case.positions(x), *levels)
    assert output.indices.min() >= -1 and output.indices.max() < quantizer.codebook_size


@every_case
def test_decode_of_encode_is_the_eval_output_bit_for_bit(case: Case) -> None:
    quantizer = initialized(case).eval()
    x = case.example()
    output = quantizer(x)
    indices = quantizer.encode(x)
    assert torch.equal(indices, output.indices)
    assert torch.equal(quantizer.decode(indices).to(x.dtype), output.quantized)
    with torch.no_grad():
        assert torch.equal(quantizer(x).quantized, output.quantized)


LEVELLED = {name: case for name, case in CASES.items() if case.build().level_axis}


@each(LEVELLED, {}, *(LEVELLED.keys() - SLOW))
def test_a_prefix_of_the_levels_decodes_as_if_the_others_were_left_out(case: Case) -> None:
    quantizer = initialized(case).eval()
    indices = quantizer.encode(case.example())
    for levels in range(1, quantizer.num_codebooks + 1):
        left_out = indices.clone()
        left_out[..., levels:] = -1
        assert torch.equal(quantizer.decode(indices[..., :levels]), quantizer.decode(left_out))


@every_case
def test_initialize_computes_in_full_precision_under_autocast(case: Case) -> None:
    plain = initialized(case)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same_state(state_of(plain), state_of(initialized(case)))


@every_case
def test_training_forward_has_the_value_of_eval(case: Case) -> None:
    quantizer = initialized(case)
    if draws_in_training(quantizer):
        pytest.skip("random in training, as it declares")
    x = case.example()
    assert torch.equal(copy.deepcopy(quantizer)(x).quantized, quantizer.eval()(x).quantized)


@every_case
def test_without_quantization_the_maps_are_left(case: Case) -> None:
    quantizer = initialized(case)
    x = case.example().requires_grad_()
    before = state_of(quantizer)
    with without_quantization(quantizer):
        output = quantizer(x)
        assert torch.equal(quantizer.encode(x), output.indices)
    passed = output.quantized
    assert (output.indices == -1).all() and output.loss == 0 and output.indices.shape == quantizer.encode(x).shape
    assert passed.shape == x.shape and passed.dtype == x.dtype
    assert_same_state(before, state_of(quantizer))
    if any(getattr(module, "has_projection", False) for module in quantizer.modules()):
        assert not torch.equal(passed, x)
        (passed.square().sum() + output.loss).backward()
        assert all(
            parameter.grad is not None
            for name, parameter in quantizer.named_parameters()
            if "project_" in name and "codebook" not in name
        )
    else:
        torch.testing.assert_close(passed, x)
    poisoned = x.detach().clone()
    vectors = poisoned.movedim(quantizer.channel_dim, -1)
    vectors[(0,) * (vectors.ndim - 1)] = float("nan")
    with without_quantization(quantizer):
        cleaned = quantizer(poisoned).quantized.movedim(quantizer.channel_dim, -1)
    assert bool((cleaned[(0,) * (vectors.ndim - 1)] == 0).all()) and cleaned.isfinite().all()


@every_case
def test_gradient_reaches_the_encoder_and_stays_finite(case: Case) -> None:
    quantizer = initialized(case)
    x = case.example().requires_grad_()
    quantizer(x).quantized.square().mean().backward()
    assert x.grad.isfinite().all() and x.grad.abs().sum() > 0


@every_case
def test_every_parameter_is_in_every_training_graph(case: Case) -> None:
    quantizer = initialized(case)
    x = case.example().requires_grad_()
    output = quantizer(x)
    (output.quantized.sum() + output.loss).backward()
    assert [name for name, value in quantizer.named_parameters() if value.grad is None] == []


@every_case
def test_the_codebook_learns(case: Case) -> None:
    quantizer = initialized(case)
    if not trains_codebook(quantizer):
        pytest.skip("no code can move")
    data = (case.example(32, seed=2) * 1.5 + 0.5).requires_grad_()
    optimizer = torch.optim.Adam([*quantizer.parameters(), torch.nn.Parameter(torch.zeros(1))], lr=3e-3)

    def error() -> float:
        """Of what the indices alone say, as a reader of tokens would have it."""
        on_sphere = getattr(quantizer, "normalize", False) and not quantizer.has_projection
        target = F.normalize(data, dim=-1) if on_sphere else data
        return float((quantizer.decode(quantizer.encode(data)) - target).square().mean().detach())

    indices = quantizer.encode(data)
    before, codes_before = error(), quantizer.decode(indices).detach().clone()
    for _ in range(75):
        output = quantizer(data)
        optimizer.zero_grad()
        (output.loss + (output.quantized - data).square().mean()).backward()
        optimizer.step()
        quantizer.step()
    assert error() < 0.95 * before
    assert not torch.equal(quantizer.decode(indices), codes_before)


@every_case
def test_eval_and_no_grad_change_nothing(case: Case) -> None:
    quantizer = initialized(case)
    quantizer(case.example())
    before = state_of(quantizer)
    x = case.example(seed=3)
    with torch.no_grad():
        quantizer(x)
        quantizer.encode(x)
        quantizer.decode(quantizer.encode(x))
    quantizer.encode(x)
    quantizer.eval()
    quantizer(x)
    quantizer(x.requires_grad_()).quantized.sum().backward()
    assert_same_state(before, state_of(quantizer))


@every_case
def test_state_survives_saving_in_the_middle_of_training(case: Case) -> None:
    quantizer = initialized(case)
    for seed in range(7):
        quantizer(case.example(seed=seed))
    buffer = io.BytesIO()
    torch.save(quantizer.state_dict(), buffer)
    buffer.seek(0)
    twin = case.build()
    twin.load_state_dict(torch.load(buffer, weights_only=True))
    for seed in range(7, 20):
        x = case.example(seed=seed)
        assert torch.equal(twin(x).indices, quantizer(x).indices)
    assert_same_state(quantizer.state_dict(), twin.state_dict())


@every_case
def test_a_checkpoint_with_a_missing_key_is_refused(case: Case) -> None:
    quantizer = case.build()
    state = quantizer.state_dict()
    if not state:
        pytest.skip("nothing is stored")
    state.popitem()
    with pytest.raises(RuntimeError, match="Missing key"):
        quantizer.load_state_dict(state)


@every_case
def test_masked_positions_are_left_out(case: Case) -> None:
    quantizer, twin = initialized(case), initialized(case)
    x = case.example()
    mask = torch.rand(case.positions(x), generator=torch.Generator().manual_seed(4)) < 0.6
    elsewhere = torch.where(mask.unsqueeze(1 if case.spatial else -1), x, 100 * torch.randn_like(x))
    if case.spatial:  # a spatial quantizer may look at a neighbourhood: leave out whole samples
        mask = torch.tensor([True, False, True]).reshape(-1, *[1] * (mask.ndim - 1)).expand(mask.shape)
        elsewhere = torch.where(mask.unsqueeze(1), x, 100.0)
    output, other = quantizer(x, mask), twin(elsewhere, mask)
    assert torch.equal(output.indices, other.indices)
    assert torch.equal(output.quantized, other.quantized)
    assert torch.equal(output.loss, other.loss)
    assert_same_state(state_of(quantizer), state_of(twin))
    left_out = output.quantized.movedim(quantizer.channel_dim, -1)[~mask]
    assert len(left_out) and not left_out.any()
    if not case.spatial:
        assert (output.indices[~mask] == -1).all() and torch.equal(
            quantizer.eval().decode(output.indices)[~mask], left_out
        )


@every_case
def test_an_all_masked_batch_costs_nothing_and_has_a_graph(case: Case) -> None:
    quantizer = initialized(case)
    noted = ("latent_spread", "watched", "extra")  # of any training forward
    before = {name: value for name, value in state_of(quantizer).items() if not any(word in name for word in noted)}
    x = case.example().requires_grad_()
    output = quantizer(x, torch.zeros(case.positions(x), dtype=torch.bool))
    assert output.loss.item() == 0 and (output.indices == -1).all()
    (output.loss + output.quantized.sum()).backward()
    assert not x.grad.any()
    assert all(value.grad is not None and not value.grad.any() for value in quantizer.parameters())
    quantizer.step()
    after = state_of(quantizer)
    assert_same_state(before, {name: after[name] for name in before})


@every_case
def test_nonfinite_vectors_are_left_out_and_counted(case: Case) -> None:
    quantizer = initialized(case)
    x = case.example()
    channels_last = x.movedim(1 if case.spatial else -1, -1)
    channels_last[0, 0][..., 0] = float("nan")
    channels_last[1, 1][..., 3] = float("inf")
    bad = ~channels_last.isfinite().all(-1)
    x.requires_grad_()
    output = quantizer(x)
    assert int(output.nonfinite) == int(bad.sum()) > 0
    (output.quantized.square().mean() + output.loss).backward()
    assert x.grad.isfinite().all() and all(value.grad.isfinite().all() for value in quantizer.parameters())
    quantizer.step()
    assert all(value.isfinite().all() for value in state_of(quantizer).values())
    if not case.spatial:
        assert (output.indices[bad] == -1).all()
    with pytest.warns(UserWarning, match="NaN or infinity"):
        assert quantizer.health()["nonfinite"] == int(bad.sum())
    quantizer.health()  # warns once: a second warning would be an error here


@every_case
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_in_and_out_with_full_precision_inside(case: Case, dtype: torch.dtype) -> None:
    quantizer = initialized(case).eval()
    x = case.example(dtype=torch.float32).to(dtype)
    reference = quantizer(x.float())
    output = quantizer(x)
    assert output.quantized.dtype == dtype and output.loss.dtype == torch.float32
    assert torch.equal(output.indices, reference.indices)
    assert torch.equal(output.quantized, reference.quantized.to(dtype))
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(quantizer(x).indices, reference.indices)
        assert torch.equal(quantizer.decode(reference.indices), reference.quantized)


@every_case
def test_casting_the_model_leaves_the_quantizer_in_full_precision(case: Case) -> None:
    quantizer = initialized(case)
    before = state_of(quantizer)
    model = torch.nn.Sequential(torch.nn.Linear(DIM, DIM), quantizer)
    model.bfloat16()
    assert model[0].weight.dtype == torch.bfloat16
    assert_same_state(before, state_of(quantizer))
    model.double()
    assert model[1](case.example(dtype=torch.float64)).loss.dtype == torch.float64
    x = case.example(dtype=torch.float64)
    assert model[1].eval().decode(model[1].encode(x)).dtype == torch.float64


@every_case
def test_codes_do_not_depend_on_the_batch_they_come_in(case: Case) -> None:
    quantizer = initialized(case).eval()
    x = case.example(24)
    whole = quantizer.encode(x)
    assert torch.equal(whole, torch.cat([quantizer.encode(x[i : i + 1]) for i in range(24)]))
    assert torch.equal(whole, torch.cat([quantizer.encode(part) for part in x.split(7)]))
    # In another shape, a projection's sums may round otherwise, by DIM 2^-24: no vector here is so near to two codes.
    nudged = x * (1 + DIM * 2**-24 * torch.randn_like(x).sign())
    assert torch.equal(whole, quantizer.encode(nudged))


@pointwise
@pytest.mark.parametrize(
    ("channel_dim", "shape"),
    [
        (-1, (5, DIM)),
        (-1, (2, 7, DIM)),
        (1, (2, DIM, 3, 5)),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [(1, (2, DIM, 7)), (1, (2, DIM, 2, 3, 4)), (-1, (2, 3, 5, DIM))]
        ),
        (-3, (2, 3, DIM, 4, 5)),
    ],
)
def test_any_layout_is_the_channel_last_one_rearranged(case: Case, channel_dim: int, shape: tuple[int, ...]) -> None:
    reference = initialized(case).eval()
    quantizer = case.build(channel_dim=channel_dim).eval()
    quantizer.load_state_dict(reference.state_dict())
    x = torch.randn(shape)
    output, expected = quantizer(x), reference(x.movedim(channel_dim, -1))
    assert torch.equal(output.indices, expected.indices)
    assert torch.equal(output.quantized.movedim(channel_dim, -1), expected.quantized)
    assert torch.equal(quantizer.decode(output.indices).to(x.dtype), output.quantized)


@every_case
def test_the_loss_does_not_grow_with_the_batch(case: Case) -> None:
    if case.ranked_losses:
        pytest.skip("a term ranks the batch, as it declares")
    quantizer = initialized(case).eval()
    x = case.example(4)
    assert torch.allclose(quantizer(x).loss, quantizer(torch.cat([x] * 5)).loss, rtol=1e-5, atol=1e-6)


@every_case
def test_degenerate_inputs_stay_finite(case: Case) -> None:
    quantizer = initialized(case)
    for x in (torch.zeros_like(case.example()), case.example(1), 1e-20 * case.example(), 1e6 * case.example()):
        x.requires_grad_()
        output = quantizer(x)
        (output.quantized.mean() + output.loss).backward()
        assert output.quantized.isfinite().all() and x.grad.isfinite().all()
        assert all(value.grad.isfinite().all() for value in quantizer.parameters())


@every_case
def test_a_batch_without_vectors_passes_through(case: Case) -> None:
    if case.spatial:
        pytest.skip("the map has a fixed size")
    quantizer = initialized(case)
    output = quantizer(torch.zeros(0, 10, DIM))
    assert output.quantized.shape == (0, 10, DIM) and output.loss.item() == 0
    assert quantizer.decode(output.indices).shape == (0, 10, DIM)


@every_case
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: x.to(torch.int64), "floating point"),
        (lambda x: x.flatten(), "channels on axis"),
        (lambda x: torch.cat([x, x], dim=list(x.shape).index(DIM)), f"dim={DIM} channels"),
    ],
)
def test_a_wrong_input_is_refused_with_words(case: Case, make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        case.build()(make(case.example()))


@every_case
def test_a_wrong_mask_is_refused_with_words(case: Case) -> None:
    x = case.example()
    for mask in (torch.ones(case.positions(x)), torch.ones(2, 1, dtype=torch.bool)):
        with pytest.raises(ValueError, match="mask has shape"):
            case.build()(x, mask)


@every_case
def test_wrong_indices_are_refused_with_words(case: Case) -> None:
    quantizer = initialized(case).eval()
    indices = quantizer.encode(case.example())
    with pytest.raises(ValueError, match="expected integers"):
        quantizer.decode(indices.float())
    for wrong in (-2, quantizer.codebook_size):
        broken = indices.clone()
        broken.flatten()[0] = wrong
        with pytest.raises(ValueError, match="indices lie in"):
            quantizer.decode(broken)


@every_case
def test_indices_of_any_integer_type_decode(case: Case) -> None:
    quantizer = initialized(case).eval()
    indices = quantizer.encode(case.example()) % min(quantizer.codebook_size, 256)
    expected = quantizer.decode(indices)
    for dtype in (torch.uint8, torch.int16, torch.int32):
        assert torch.equal(quantizer.decode(indices.to(dtype)), expected)


@every_case
def test_built_on_meta_and_filled_from_a_checkpoint(case: Case) -> None:
    reference = initialized(case).eval()
    with torch.device("meta"):
        quantizer = case.build()
    # As `to_empty`, in memory that is never zero by chance.
    quantizer._apply(lambda tensor: torch.full_like(tensor, 3, device="cpu")).load_state_dict(reference.state_dict())
    unsaved = {name: buffer for name, buffer in case.build().named_buffers() if name not in reference.state_dict()}
    assert all(torch.equal(quantizer.get_buffer(name), buffer) for name, buffer in unsaved.items())
    x = case.example()
    assert torch.equal(quantizer.eval().encode(x), reference.encode(x))


def checkpointed(run: Callable[[Tensor], Tensor], *, depth: int, reentrant: bool = False) -> Callable[[Tensor], Tensor]:
    for _ in range(depth):
        run = partial(torch.utils.checkpoint.checkpoint, run, use_reentrant=reentrant)
    return run


@every_case
def test_recomputation_under_activation_checkpointing_counts_nothing(case: Case) -> None:
    """Also nested, and where two forwards come before the backward: each draws again what it drew."""
    quantizers, inputs = [initialized(case) for _ in range(3)], []
    for depth, quantizer in enumerate(quantizers):
        for part in quantizer.modules():
            part.auto_step = False

        def run(x: Tensor, quantizer: BaseQuantizer = quantizer) -> Tensor:
            result = quantizer(x)
            return result.quantized.square().mean() + result.loss

        inputs.append([case.example(seed=seed).requires_grad_() for seed in range(6)])
        for pair in zip(inputs[-1][::2], inputs[-1][1::2], strict=True):
            sum(checkpointed(run, depth=depth)(x) for x in pair).backward()
            quantizer.step()
    for quantizer, others in zip(quantizers[1:], inputs[1:], strict=True):
        assert [torch.equal(x.grad, y.grad) for x, y in zip(inputs[0], others, strict=True)] == [True] * 6
        assert_same_state(state_of(quantizers[0]), state_of(quantizer))


@every_case
def test_reentrant_checkpointing_is_refused_and_forwards_without_gradients_are_not(case: Case) -> None:
    quantizer, x = initialized(case), case.example().requires_grad_()
    quantizer(x).loss.backward()
    with torch.no_grad():
        quantizer(x)
    with torch.inference_mode():
        quantizer(x.detach())
    run = checkpointed(lambda y: quantizer(y).quantized, depth=1, reentrant=True)
    with pytest.raises(RuntimeError, match=r"pass use_reentrant=False, or call \.eval"):
        run(x)
    quantizer.eval()
    run(x).sum().backward()


@every_case
def test_the_loss_of_frozen_features_has_a_backward(case: Case) -> None:
    quantizer = initialized(case).requires_grad_(False)
    for x, mask in ((case.example(), True), (case.example(), False)):
        quantizer(x, torch.full(case.positions(x), mask)).loss.backward()
    assert not quantizer.eval()(case.example()).loss.requires_grad


def test_initialize_from_no_samples_is_refused() -> None:
    for case in (CASES["vq"], CASES["fsq_projected"], CASES["residual"]):
        with pytest.raises(ValueError, match="samples=0: expected at least 1"):
            case.build().initialize([case.example()], samples=0)


@every_case
def test_repr_names_the_sizes(case: Case) -> None:
    assert str(DIM) in repr(case.build())


@pytest.mark.parametrize("policy", [RandomRestart(every=3), LBGSplitting(every=3), ClusterReinit(every=3)], ids=repr)
def test_policies_are_asked_at_their_every_nth_step(policy: Maintenance, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(type(policy), "refresh", lambda self, codebook, z, valid: asked.append(codebook.steps))
    quantizer = Quantizer("vq", dim=4, codebook_size=8, maintenance=[policy])
    for _ in range(8):
        quantizer(torch.randn(6, 4))
    assert asked == [3, 6]


def test_health_sees_every_column_of_a_map() -> None:
    """Rows are thinned for the counters; a stride that the width divides would see one column alone."""
    x = torch.zeros(128, 3, 32, 32)
    x[..., 0] = 9
    quantizer = FSQ([5, 4, 3], channel_dim=1)
    quantizer(x.requires_grad_())
    assert abs(quantizer.health()["saturated"] - 1 / 32) < 0.01


def test_without_quantization_nothing_is_shared_with_the_input() -> None:
    quantizer, x = Quantizer("vq", dim=4, codebook_size=8), torch.randn(6, 4)
    before = x.clone()
    with without_quantization(quantizer), torch.no_grad():
        quantizer(x).quantized.zero_()
    assert torch.equal(x, before)


@pytest.mark.parametrize("size", [1e38, 3e38, float("inf")])
def test_a_stage_that_diverged_does_not_take_the_later_ones_along(size: float) -> None:
    stage = partial(Quantizer, "ema", dim=4, codebook_size=8, codebook_dim=2)
    quantizer = ResidualQuantizer(stage, 2, estimator=None)
    for _ in range(3):
        torch.nn.init.constant_(quantizer.stages[0].project_out.bias, size)
        output = quantizer(torch.randn(600, 4))
    assert quantizer.stages[1].codebook.vectors.isfinite().all()
    assert (output.indices[:, 1] == -1).all() or size < float("inf")


def test_the_loss_alone_reaches_the_way_out_of_the_code_space() -> None:
    quantizer = Quantizer("vq", dim=8, codebook_size=8, codebook_dim=4)
    loss = quantizer(torch.randn(6, 8)).loss
    edges, found = [loss.grad_fn], set()
    while edges:
        node = edges.pop()
        found |= {id(node.variable)} if hasattr(node, "variable") else set()
        edges += [edge for edge, _ in node.next_functions if edge is not None]
    assert {id(parameter) for parameter in quantizer.parameters()} <= found


@pytest.mark.parametrize("build", [lambda: Quantizer("vq", dim=4, codebook_size=8), lambda: FSQ([5, 4, 3, 3])])
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch 2.11 uses it itself
def test_forward_mode_derivatives(build) -> None:
    quantizer, x, tangent = build().eval(), torch.randn(6, 4), torch.randn(6, 4)
    _, forward = torch.func.jvp(lambda z: quantizer(z).quantized, (x,), (tangent,))
    _, pullback = torch.func.vjp(lambda z: quantizer(z).quantized, x)
    torch.testing.assert_close((forward * tangent).sum(), (pullback(tangent)[0] * tangent).sum())


def test_a_choice_of_ones_own_is_what_encode_finds() -> None:
    class First(Quantizer):
        def choose(self, latents: Tensor, valid: Tensor) -> tuple[Tensor, Selection]:
            estimated, selection = super().choose(latents, valid)
            return estimated, replace(selection, indices=torch.where(valid, 0, -1))

    x = torch.randn(6, 4)
    first = partial(First, "vq", dim=4, codebook_size=8)
    for quantizer in (first(), ResidualQuantizer(first, 2)):
        assert torch.equal(quantizer.eval()(x).indices, quantizer.encode(x)) and (quantizer.encode(x) == 0).all()


def test_a_policy_without_a_period_is_refused() -> None:
    policy = RandomRestart()
    policy.every = 0
    with pytest.raises(ValueError, match="RandomRestart has every=0: expected a number of optimizer steps"):
        Quantizer("vq", dim=4, codebook_size=8, maintenance=[policy])

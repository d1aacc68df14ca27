"""One code, one vector, one dimension, fewer vectors than codes, equal codes, vectors of zeros (property P6)."""

import warnings
from functools import partial

import pytest
import torch

from tests.contract.test_symmetries import tables
from vqkit import BridgedCodebook, CodebookUsage, EMACodebook, GroupedQuantizer, Quantizer, ResidualQuantizer, bake
from vqkit.methods import METHODS
from vqkit.quantizers.initialization import MemberWarnings

every_method = pytest.mark.parametrize("method", METHODS)


def build(method: str, *, dim: int = 4, codebook_size: int = 8, **options) -> Quantizer:
    if method == "fvq":  # its grid of codes has to hold whole patches
        options["codebook"] = partial(BridgedCodebook, patch_size=1)
    return Quantizer(method, dim=dim, codebook_size=codebook_size, **options)


def train(quantizer: Quantizer, x: torch.Tensor) -> torch.Tensor:
    """Two steps; everything that comes out is finite."""
    for _ in range(2):
        inputs = x.clone().requires_grad_()
        output = quantizer(inputs)
        (output.quantized.square().mean() + output.loss).backward()
        assert output.quantized.isfinite().all() and inputs.grad.isfinite().all()
        assert all(value.grad is not None and value.grad.isfinite().all() for value in quantizer.parameters())
    quantizer.step()
    assert all(value.isfinite().all() for value in quantizer.state_dict().values())
    return output.indices


@every_method
def test_one_code(method: str) -> None:
    quantizer = build(method, codebook_size=1)
    quantizer.initialize([torch.randn(20, 4)])
    assert not train(quantizer, torch.randn(9, 4)).any()


@every_method
@pytest.mark.parametrize(
    ("sizes", "samples", "batch"),
    [
        ({}, torch.randn(20, 4), torch.randn(1, 4)),
        ({"codebook_size": 16}, torch.randn(3, 4), torch.randn(5, 4)),
        ({"dim": 1}, torch.randn(50, 1), torch.randn(20, 1)),
        ({}, torch.ones(20, 4), torch.ones(6, 4)),
    ],
    ids=["one vector", "fewer vectors than codes", "one dimension", "equal vectors"],
)
@pytest.mark.filterwarnings("ignore:.*the codes spread", "ignore:.*initialize got")
def test_small_sets(method: str, sizes: dict[str, int], samples: torch.Tensor, batch: torch.Tensor) -> None:
    quantizer = build(method, **sizes)
    quantizer.initialize([samples])
    assert train(quantizer, batch).shape == batch.shape[:1]


def test_too_few_vectors_for_the_codes_of_any_stage_are_said_with_their_number() -> None:
    stage = partial(Quantizer, "ema", dim=4, codebook_size=16)
    nan = torch.full((30, 4), float("nan"))  # does not count
    with pytest.warns(UserWarning, match="got 9 vectors, 9 of them different, for 16 codes.*for each code$"):
        stage().initialize([torch.cat([torch.randn(9, 4), nan])])
    with pytest.warns(UserWarning, match="got 9 vectors, 9 of them different") as caught:
        GroupedQuantizer(partial(stage, dim=2), 2).initialize([torch.cat([torch.randn(9, 4), nan])])
    assert [str(warning.message)[-14:] for warning in caught] == [" (groups 0, 1)"]
    with pytest.warns(UserWarning, match=r"got 16 vectors, 1 of them different, for 16 codes.* \(stage 1\)") as caught:
        ResidualQuantizer(stage, 2).initialize([torch.randn(16, 4)])
    assert [str(warning.message)[-10:] for warning in caught] == [" (stage 1)"]
    inner = partial(stage, dim=2)
    with pytest.warns(UserWarning, match=r"\(group [01]\)$") as caught:
        GroupedQuantizer([inner, lambda: ResidualQuantizer(inner, 2)]).initialize([torch.randn(9, 4)])
    assert "(stage 0) (group 1)" in str(caught[1].message)
    with pytest.warns(UserWarning, match=r"\(stages? [0-3, ]+\)$") as caught:
        ResidualQuantizer([partial(stage, codebook_size=n) for n in (2, 3, 16, 16)]).initialize([torch.zeros(16, 4)])
    endings = [str(warning.message).rpartition(" (")[2] for warning in caught]
    assert endings == ["stage 0)", "stage 1)", "stages 2, 3)"]


def failing(kind: str) -> None:
    with MemberWarnings(kind) as warned:
        for number in (1, 2):
            with warned.by(number):
                warnings.warn("why", UserWarning, stacklevel=1)
                if number == 2:
                    raise RuntimeError("it fails")


def test_an_error_of_a_member_leaves_its_warnings() -> None:
    with pytest.warns(UserWarning, match=r"^why \(stages 1, 2\)$"), pytest.raises(RuntimeError, match="it fails"):
        failing("stage")


@every_method
def test_vectors_of_zeros(method: str) -> None:
    quantizer = build(method)
    quantizer.initialize([torch.randn(20, 4)])
    indices = train(quantizer, torch.zeros(6, 4))
    assert len(indices.unique()) == 1 or quantizer.search.uses_noise


@every_method
@pytest.mark.parametrize("normalize", [False, True])
def test_of_equal_codes_the_first_is_taken(method: str, normalize: bool) -> None:
    quantizer = build(method, normalize=normalize)
    quantizer.initialize([torch.randn(50, 4)])
    quantizer = bake(quantizer)
    for table in tables(quantizer):
        table[4:] = table[:4].clone()
    indices = quantizer.encode(torch.randn(100, 4))
    assert indices.max() < 4 and len(indices.unique()) > 1


@pytest.mark.parametrize("auto_step", [True, False])
def test_training_that_nobody_initialized_says_so_once(auto_step: bool) -> None:
    quantizer = Quantizer("vq", dim=4, codebook_size=64, auto_step=auto_step)

    def train(steps: int) -> None:
        for _ in range(steps):
            quantizer(torch.randn(20, 4))
            quantizer(torch.randn(20, 4))
            quantizer.step()

    train(40)
    with pytest.warns(UserWarning, match=r"call initialize\(latents\) before training") as warned:
        train(200)
    assert len(warned) == 1


def test_underused_codes_are_those_of_the_running_usage_and_dead_ones_those_of_a_count() -> None:
    """With a decay of 0 the window of the running usage is a step."""
    quantizer = Quantizer("ema", dim=4, codebook_size=16, codebook=partial(EMACodebook, usage_decay=0.0))
    quantizer.initialize([torch.randn(200, 4)])
    usage, x = CodebookUsage(16), quantizer.codebook.vectors[:4].repeat(5, 1)
    usage.update(quantizer(x).indices)
    quantizer.step()
    assert quantizer.health()["underused"] == 12 / 16 and usage.compute()["dead"] == 12
    usage.update(torch.arange(16))
    assert quantizer.health()["underused"] == 12 / 16 and usage.compute()["dead"] == 0


vq = partial(build, "vq")


@pytest.mark.parametrize(
    ("made", "member"),
    [
        (vq, ""),
        (partial(ResidualQuantizer, vq, 2), "(stage 1)"),
        (partial(GroupedQuantizer, vq, 2), "(groups 0, 1)"),
        (partial(GroupedQuantizer, partial(ResidualQuantizer, vq, 2), 2), "(stage 1) (groups 0, 1)"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*the codes spread")
def test_warnings_of_initialize_are_of_the_line_that_called_it(made, member: str) -> None:
    quantizer = made()
    with pytest.warns(UserWarning, match="initialize got") as caught:
        quantizer.initialize([torch.randn(3, quantizer.dim)])
    assert {warning.filename for warning in caught} == {__file__}
    assert any(str(warning.message).endswith(member) for warning in caught)

"""`bake`: a copy for inference with plain tables, whose indices and vectors are those of the module, bit for bit."""

from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.contract.cases import CASES, DIM, Case
from tests.contract.test_contract import every_case, initialized
from vqkit import (
    LFQ,
    BaseQuantizer,
    BridgedCodebook,
    CascadedCodebook,
    Codebook,
    Estimator,
    FeatureCodebook,
    FrozenCodebook,
    GroupedQuantizer,
    Quantizer,
    ResidualQuantizer,
    RotationTrick,
    Search,
    Tokenizer,
    bake,
)
from vqkit.backbones.conv2d import ConvDecoder2d, ConvEncoder2d
from vqkit.saving.config import Configured, from_config, to_config

ALLOW = ("vqkit", "tests")


def trained(quantizer: BaseQuantizer, case: Case) -> BaseQuantizer:
    """After a few steps, with something pending."""
    parameters = [*quantizer.parameters(), nn.Parameter(torch.zeros(1))]
    optimizer = torch.optim.SGD(parameters, lr=0.01)
    for seed in range(3):
        optimizer.zero_grad()
        output = quantizer(case.example(seed=seed).requires_grad_())
        (output.loss + output.quantized.square().mean()).backward()
        optimizer.step()
    return quantizer


def assert_same_inference(ours: BaseQuantizer, expected: BaseQuantizer, x: Tensor) -> None:
    ours.eval(), expected.eval()
    indices = expected.encode(x)
    assert torch.equal(ours.encode(x), indices)
    assert torch.equal(ours.decode(indices), expected.decode(indices))
    assert torch.equal(ours(x).quantized, expected(x).quantized)
    with torch.no_grad():
        assert torch.equal(ours(x).indices, expected(x).indices)


def built_by_a_function(quantizer: BaseQuantizer) -> bool:
    """Whether its members come from a function, which no configuration can name."""
    try:
        to_config(quantizer)
    except ValueError:
        return True
    return False


def codebooks(module: nn.Module) -> list[Codebook]:
    return [part for part in module.modules() if isinstance(part, Codebook)]


@every_case
def test_the_copy_gives_the_same_indices_and_vectors_and_can_be_saved(case: Case, tmp_path: Path) -> None:
    quantizer = trained(initialized(case), case)
    if built_by_a_function(quantizer):
        with pytest.raises(ValueError, match="cannot be written to a configuration"):
            bake(quantizer)
        return
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    table = bake(quantizer)
    assert type(table) is type(quantizer) and not any(
        part.training for part in table.modules() if not isinstance(part, Estimator)
    )
    for ours, theirs in zip(codebooks(table), codebooks(quantizer), strict=True):
        assert ours.rows != "derived" and torch.equal(ours.usage, theirs.usage) and ours.steps == theirs.steps
    after = quantizer.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert_same_inference(table, quantizer, case.example(8, seed=5))
    table.save_pretrained(tmp_path)
    loaded = BaseQuantizer.from_pretrained(tmp_path, allow=ALLOW)
    assert_same_inference(loaded, quantizer, case.example(8, seed=6))
    assert_same_inference(bake(loaded), quantizer, case.example(8, seed=7))


@pytest.mark.parametrize("name", ["vq", "ema", "simvq", "ibq", "coda", "vqgan_lc", "fvq", "cascaded", "normalized"])
def test_nothing_of_training_is_left(name: str) -> None:
    table = bake(initialized(CASES[name]))
    assert len(codebooks(table)) == len(codebooks(CASES[name].build()))
    for part in table.modules():
        if isinstance(part, Quantizer):
            assert isinstance(part.codebook, FrozenCodebook) and not part.losses and not part.maintenance
    assert not list(table.parameters())
    assert table(CASES[name].example()).loss == 0


@pytest.mark.parametrize(
    "build",
    [
        CASES["vq"].build,
        CASES["cascaded"].build,
        partial(Quantizer, "simvq", dim=DIM, codebook_size=16, codebook_dim=4),
        partial(GroupedQuantizer, partial(Quantizer, "vq", dim=DIM, codebook_size=16), 2),
        lambda: BuildsItsOwn("vq", 4),
    ],
    ids=["vq", "cascaded", "simvq", "groups", "a module of its own"],
)
def test_the_copy_shares_no_memory_and_the_module_keeps_its_parts(build) -> None:
    module = build()
    parts = [type(part) for part in module.modules()]
    config = to_config(module)
    table = bake(module)
    ours, theirs = (
        {value.data_ptr() for value in (*part.parameters(), *part.buffers()) if value.numel()}
        for part in (table, module)
    )
    assert ours and not ours & theirs
    assert [type(part) for part in module.modules()] == parts and to_config(module) == config


class Wrapped(Configured, nn.Module):
    def __init__(self, branches: list[BaseQuantizer]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)


def test_quantizers_among_the_arguments_are_found_wherever_they_are() -> None:
    module = Wrapped([Quantizer("simvq", dim=4, codebook_size=8), LFQ(3)])
    table = bake(module)
    assert type(table.branches[0].codebook) is FrozenCodebook and not table.branches[1].losses
    from_config(to_config(table), allow=ALLOW).load_state_dict(table.state_dict())


def test_parts_of_inference_stay() -> None:
    quantizer = Quantizer(
        "simvq", dim=8, codebook_size=16, codebook_dim=4, channel_dim=1, search=Search("cosine"), normalize=True
    )
    table = bake(quantizer)
    x = torch.randn(2, 8, 3, 5)
    assert_same_inference(table, quantizer, x)
    assert table.search.metric == "cosine" and table.normalize and table.channel_dim == 1
    assert torch.equal(table.project_in.weight, quantizer.project_in.weight)


def test_double_precision_stays() -> None:
    quantizer = initialized(CASES["fvq"]).double()
    table = bake(quantizer)
    assert table.dtype == torch.float64 and table.codebook.vectors.dtype == torch.float64
    assert_same_inference(table, quantizer, CASES["fvq"].example(dtype=torch.float64))


def test_codes_are_computed_in_full_precision_under_autocast() -> None:
    quantizer = initialized(CASES["fvq"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        table = bake(quantizer)
    assert_same_inference(table, quantizer, CASES["fvq"].example())


stage = partial(Quantizer, dim=DIM, codebook_size=16)
COMPOSITES = {
    "one factory": partial(ResidualQuantizer, partial(stage, "simvq"), 2),
    "the default method": partial(ResidualQuantizer, stage, 2),
    "a codebook and an estimator": partial(
        ResidualQuantizer,
        partial(stage, "fvq", codebook=partial(BridgedCodebook, width=8), estimator=RotationTrick(), maintenance=[]),
        2,
        estimator=None,
    ),
    "a list": partial(GroupedQuantizer, [partial(Quantizer, "simvq", dim=3, codebook_size=9), partial(stage, dim=5)]),
    "two tables": partial(
        GroupedQuantizer, partial(stage, "cascaded", dim=4, codebook=partial(CascadedCodebook, seed=3)), 2
    ),
    "two tables, by the method": partial(GroupedQuantizer, partial(stage, "cascaded", dim=4), 2),
    "a composite of composites": partial(
        GroupedQuantizer, partial(ResidualQuantizer, partial(stage, "vqgan_lc", dim=4), 2), 2
    ),
}


@pytest.mark.parametrize("build", COMPOSITES.values(), ids=COMPOSITES)
def test_factories_in_every_form(build, tmp_path: Path) -> None:
    quantizer = build()
    quantizer.initialize([torch.randn(300, quantizer.dim)])
    trained(quantizer, Case(build))
    table = bake(quantizer)
    assert len(codebooks(table)) == len(codebooks(quantizer))
    for ours, theirs in zip(codebooks(table), codebooks(quantizer), strict=True):
        assert isinstance(ours, FrozenCodebook) and ours.cascaded == theirs.cascaded
        assert theirs.get_extra_state()[2] == 1 and ours.get_extra_state()[2] == 0  # batches pending
    assert_same_inference(table, quantizer, torch.randn(50, quantizer.dim))
    table.save_pretrained(tmp_path)
    assert_same_inference(type(quantizer).from_pretrained(tmp_path), quantizer, torch.randn(50, quantizer.dim))


def test_a_file_of_features_is_not_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    save_file({"f": torch.randn(16, 12)}, path)
    book = partial(FeatureCodebook, base_path=str(path), base_dim=12)
    quantizer = Quantizer("vqgan_lc", dim=DIM, codebook_size=16, codebook=book)
    path.unlink()
    table = bake(quantizer)
    assert_same_inference(table, quantizer, torch.randn(50, DIM))
    table.save_pretrained(tmp_path / "saved")
    assert str(path) not in (tmp_path / "saved" / "config.json").read_text()


def test_a_file_is_not_asked_for_where_no_configuration_reaches(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    save_file({"f": torch.randn(8, 4)}, path)
    quantizer = ReadsAFile(str(path))
    path.unlink()
    assert torch.equal(bake(quantizer).inner.codebook.index_vectors, quantizer.inner.codebook.index_vectors)


def test_a_tokenizer_bakes(tmp_path: Path) -> None:
    sizes = {"dim": DIM, "channels": 32, "num_res_blocks": 1}
    tokenizer = Tokenizer(
        ConvEncoder2d(**sizes), Quantizer("simvq", dim=DIM, codebook_size=16, channel_dim=1), ConvDecoder2d(**sizes)
    ).eval()
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    table = bake(tokenizer)
    assert type(table.quantizer.codebook) is FrozenCodebook
    table.save_pretrained(tmp_path)
    for copy in (table, Tokenizer.from_pretrained(tmp_path)):
        indices = tokenizer.encode(images)
        assert torch.equal(copy.encode(images), indices)
        assert torch.equal(copy.decode(indices), tokenizer.decode(indices))


class BuildsItsOwn(Configured, nn.Module):
    def __init__(self, method: str, dim: int) -> None:
        super().__init__()
        self.inner = Quantizer(method, dim=dim, codebook_size=8)


class ReadsAFile(Configured, nn.Module):
    def __init__(self, path: str) -> None:
        super().__init__()
        book = partial(CascadedCodebook, base_path=path)
        self.inner = Quantizer("cascaded", dim=4, codebook_size=8, codebook=book)


class Pair(GroupedQuantizer):
    def __init__(self, dim: int) -> None:
        super().__init__(partial(Quantizer, "ema", dim=dim, codebook_size=8), 2)


class Chain(ResidualQuantizer):
    def __init__(self, dim: int) -> None:
        super().__init__(partial(Quantizer, "ema", dim=dim, codebook_size=8), 2)


class Fixed(Quantizer):
    def __init__(self, dim: int) -> None:
        super().__init__("ema", dim=dim, codebook_size=8)


@pytest.mark.parametrize("kind", [Pair, Chain, Fixed])
def test_constructors_that_take_no_parts_build_the_copy_too(kind, tmp_path: Path) -> None:
    quantizer = kind(4)
    table = bake(quantizer)
    assert_same_inference(table, quantizer, torch.randn(50, quantizer.dim))
    table.save_pretrained(tmp_path)
    assert_same_inference(kind.from_pretrained(tmp_path, allow=ALLOW), quantizer, torch.randn(50, quantizer.dim))


def test_what_cannot_be_baked_is_refused_with_words() -> None:
    with pytest.raises(ValueError, match=r"bake got Linear: expected a module whose configuration can be written"):
        bake(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"inner.codebook is a ProjectedCodebook which BuildsItsOwn builds where"):
        bake(BuildsItsOwn("simvq", 4))
    book = lambda size, dim: Codebook(size, dim)  # noqa: E731
    with pytest.raises(ValueError, match="argument 'codebook' cannot be written"):
        bake(Quantizer("vq", dim=4, codebook_size=8, codebook=book))

"""Weights that are not those of a family, files that are hostile, and licenses."""

import io
import os
import zipfile
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.conversion.files import added, filled, refuses, refuses_change, removed
from tests.conversion.published import IBQ, VAR, DiffusersVQ, LlamaGen, Published, Taming, TamingGumbel
from tests.trainers.tiny import make_tokenizer
from vqkit import Tokenizer, convert
from vqkit.command_line.main import main
from vqkit.conversion import (
    DiffusersVQModel,
    Family,
    LlamaGenVQ,
    SeedVokenIBQ,
    TamingGumbelVQGAN,
    TamingVQGAN,
    VARAutoencoder,
)
from vqkit.conversion.source import Source, read_source
from vqkit.conversion.vqgan import check_blocks
from vqkit.saving.pickles import Unused

FAMILIES: list[tuple[type[Published], Family]] = [
    (Taming, TamingVQGAN()),
    (TamingGumbel, TamingGumbelVQGAN()),
    (IBQ, SeedVokenIBQ()),
    (LlamaGen, LlamaGenVQ()),
    (VAR, VARAutoencoder((1, 2, 4, 8))),
    (DiffusersVQ, DiffusersVQModel()),
]


def state_of(cls: type[Published]) -> dict[str, torch.Tensor]:
    return dict(filled(cls).state)


def written(content: Any, folder: Path) -> Path:
    torch.save(content, folder / "weights.pt")
    return folder / "weights.pt"


MISSING = (removed("encoder.conv_in.bias"), r"entry 'encoder.conv_in.bias' is missing: expected shape \(32,\)")


@pytest.mark.parametrize(("cls", "family"), FAMILIES)
def test_an_entry_that_is_missing_is_named(cls, family, tmp_path) -> None:
    refuses_change(family.name, state_of(cls), *MISSING, tmp_path, family=family)


@pytest.mark.parametrize(
    ("cls", "family"), [pytest.param(*pair, marks=pytest.mark.slow) for pair in FAMILIES[1:]] + FAMILIES[:1]
)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (removed("quant_conv.weight"), "entry 'quant_conv.weight' is missing: expected a tensor of 4 axes"),
        (added("encoder.more", 2), r"entry 'encoder.more' of shape \(2,\) is unexpected"),
        (
            added("decoder.conv_in.weight", 64, 7, 3, 3),
            r"entry 'decoder.conv_in.weight' has shape \(64, 7, 3, 3\): expected \(64, 6, 3, 3\)",
        ),
        (
            added("encoder.conv_in.weight", 32),
            r"entry 'encoder.conv_in.weight' has shape \(32,\): expected 4 axes",
        ),
        (
            added("decoder.conv_out.bias", 3, dtype=torch.int64),
            "entry 'decoder.conv_out.bias' holds torch.int64: expected floating point",
        ),
    ],
)
def test_entries_that_are_not_those_of_the_family_are_named(cls, family, change, message, tmp_path) -> None:
    refuses_change(family.name, state_of(cls), change, message, tmp_path, family=family)


def test_an_average_that_is_missing_is_named(tmp_path) -> None:
    state = filled(IBQ).checkpoint()
    del state["model_ema.quant_convbias"]
    refuses(state, r"'model_ema\.quant_convbias' is missing: expected the average", tmp_path)


def test_an_average_of_nothing_is_named(tmp_path) -> None:
    state = filled(IBQ).checkpoint() | {"model_ema.lossdiscriminator": torch.zeros(1), "model_ema.more": torch.zeros(1)}
    refuses(state, r"entry 'model_ema\.more' is unexpected", tmp_path)


@pytest.mark.parametrize(
    ("make", "blocks"),
    [
        (lambda: state_of(IBQ), 4),
        (lambda: filled(IBQ, num_res_blocks=2).checkpoint(), 2),
        (lambda: filled(Taming, num_res_blocks=1).checkpoint(), 1),
    ],
)
def test_names_that_two_families_share_are_not_guessed(make, blocks, tmp_path) -> None:
    refuses(make(), rf"{blocks} residual blocks .* family= .* TamingVQGAN\(\) .* SeedVokenIBQ\(\)", tmp_path)


def test_a_family_is_an_instance(tmp_path) -> None:
    with pytest.raises(TypeError, match=r"expected a family of vqkit.conversion, such as LlamaGenVQ\(\)"):
        convert(tmp_path / "none", tmp_path / "converted", family=TamingVQGAN)


def test_levels_of_another_number_in_the_decoder_are_refused(tmp_path) -> None:
    state = {name: value for name, value in state_of(Taming).items() if not name.startswith("decoder.up.1.")}
    refuses(state, "its encoder has 2 levels and its decoder 1: expected as many", tmp_path)


@pytest.mark.parametrize("destination", ["folder", "folder/model.safetensors"])
def test_what_is_there_is_not_overwritten(destination, tmp_path) -> None:
    file = tmp_path / "folder/model.safetensors"
    file.parent.mkdir()
    save_file(state_of(Taming), file)
    content = file.read_bytes()
    with pytest.raises(ValueError, match="holds something else than a saved tokenizer: give a new folder"):
        convert(file, tmp_path / destination)
    assert [path.name for path in file.parent.iterdir()] == ["model.safetensors"] and file.read_bytes() == content


def test_more_faults_than_a_message_holds_are_counted(tmp_path) -> None:
    state = state_of(Taming)
    for part in ("norm1", "conv1", "norm2"):
        for kind in ("weight", "bias"):
            del state[f"decoder.up.0.block.1.{part}.{kind}"]
    refuses(state, "; and 2 more", tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"norm_type": "spatial"}', "norm_type='spatial': expected 'group'"),
        ('{"norm_num_groups": "32"}', "norm_num_groups='32': expected a positive whole number"),
    ],
)
def test_settings_that_weights_do_not_show_are_read_from_the_config(config, message, tmp_path) -> None:
    (tmp_path / "config.json").write_text(config)
    refuses(state_of(DiffusersVQ), message, tmp_path)


# ---------------------------------------------------------------------- files


def old_checkpoint(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """As trainers of 2021 wrote it: callbacks by class, and the weights of the loss."""
    return {"epoch": 3, "callbacks": {Unused: {"best": 1.0}}, "state_dict": state | {"loss.logvar": torch.zeros(())}}


def renamed(file: Path, name: str) -> None:
    """Call the stand-in by the name of a class that is not installed."""
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    module, _, cls = name.rpartition(".")
    with zipfile.ZipFile(file, "w") as archive:
        for entry, content in entries.items():
            archive.writestr(entry, content.replace(b"cvqkit.saving.pickles\nUnused\n", f"c{module}\n{cls}\n".encode()))


def test_an_old_checkpoint_is_read_and_its_loss_left_out(tmp_path) -> None:
    file = written(old_checkpoint(state_of(Taming)), tmp_path)
    renamed(file, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")
    told = convert(file, tmp_path / "converted").provenance
    assert told is not None and told["left_out"] == "loss."
    renamed_again = written(old_checkpoint(state_of(Taming)), tmp_path)
    renamed(renamed_again, "somewhere.else.Callback")
    with pytest.raises(ValueError, match=r"which only code could make: somewhere\.else\.Callback"):
        convert(renamed_again, tmp_path / "converted")


def test_a_checkpoint_with_the_arguments_of_its_trainer_is_read(tmp_path) -> None:
    content = {"model": state_of(LlamaGen), "steps": 3, "args": Namespace(ema=False)}
    assert read_source(written(content, tmp_path)).state.keys() == content["model"].keys()


@pytest.mark.parametrize("holders", [("ema", "model"), ("model", "optimizer"), ("state_dict",)])
def test_averaged_weights_come_before_others(holders, tmp_path) -> None:
    state = state_of(LlamaGen)
    content = {name: {key: value + place for key, value in state.items()} for place, name in enumerate(holders)}
    found = read_source(written(content, tmp_path))
    assert found.state.keys() == state.keys() and all(torch.equal(found.state[key], state[key]) for key in state)


class Attack:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def packed(content: Any) -> bytes:
    """The archive of `torch.save` with its entries compressed."""
    plain, small = io.BytesIO(), io.BytesIO()
    torch.save(content, plain)
    with zipfile.ZipFile(plain) as archive, zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as other:
        for entry in archive.infolist():
            other.writestr(entry.filename, archive.read(entry))
    return small.getvalue()


def nested(depth: int) -> list:
    """A list whose leaves are 2^depth, in a few bytes for each level."""
    leaf: list = []
    for _ in range(depth):
        leaf = [leaf, leaf]
    return leaf


REFUSED = {
    "no known family": (
        lambda folder: {"layer.weight": torch.zeros(2)},
        "is of no known family: it holds 'layer.weight'; expected an entry of VQModel",
    ),
    "scales of another number": (lambda folder: state_of(VAR), "counts 4 scales: expected 10"),
    "too large for float32": (
        lambda folder: state_of(Taming) | {"encoder.conv_in.bias": torch.full((32,), 1e300, dtype=torch.float64)},
        "entry 'encoder.layers.1.bias' holds NaN or infinity in 32 of 32",
    ),
    "code": (lambda folder: {"state_dict": Attack(folder / "ran")}, "which only code could make: (posix|nt).mkdir"),
    "a billion numbers of one": (
        lambda folder: {"encoder.conv_in.weight": torch.zeros(1).expand(2**30)},
        "declares more numbers than it has bytes, 'encoder.conv_in.weight' alone 1073741824",
    ),
    "numbers without memory": (
        lambda folder: {"encoder.conv_in.weight": torch.zeros(2**40, device="meta")},
        "'encoder.conv_in.weight' is torch.strided on meta: expected plain numbers",
    ),
    "sparse": (lambda folder: {"a": torch.zeros(2**20).to_sparse()}, "'a' is torch.sparse_coo on cpu"),
    "not finite": (lambda folder: {"a": torch.full((2,), torch.nan)}, "entry 'a' holds NaN or infinity in 2 of 2"),
    "nested": (lambda folder: nested(60), "holds a list: expected a state dict"),
    "an object among weights": (lambda folder: {"a": torch.zeros(1), "b": nested(60)}, "entry 'b' is a list"),
    "nothing": (lambda folder: {}, "holds a dict: expected a state dict"),
    "many entries": (lambda folder: dict.fromkeys(map(str, range(20000)), torch.zeros(1)), "has 20000 entries"),
    "names of many blocks": (
        lambda folder: (
            state_of(Taming) | {f"decoder.up.0.block.{n}.conv1.weight": torch.zeros(32, 32, 1, 1) for n in range(200)}
        ),
        "names are those of 402 blocks: expected at most one for 6 of its 404 entries",
    ),
    "names of many levels": (
        lambda folder: (
            state_of(Taming)
            | {f"encoder.down.{n}.block.0.conv1.weight": torch.zeros(64, 32, 1, 1) for n in range(3000)}
            | {f"decoder.up.{n}.block.0.conv1.weight": torch.zeros(64, 32, 1, 1) for n in range(3000)}
        ),
        "its names count more than 256 layers or codebooks of one kind",
    ),
    "eight bits": (
        lambda folder: {"a": torch.zeros(4).to(torch.float8_e4m3fn)},
        "entry 'a' holds torch.float8_e4m3fn: expected numbers of 16 bits or more",
    ),
    "a level of a billion": (
        lambda folder: OrderedDict(state_of(Taming) | {"quant_conv.weight": torch.zeros(2**21, 1, 1, 1)}),
        "encoder.dim=2097152 and quantizer.dim=5",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.filterwarnings("ignore:.*Sparse")
def test_foreign_and_hostile_files_are_refused(kind, tmp_path) -> None:
    make, message = REFUSED[kind]
    refuses(make(tmp_path), f"weights.pt.*({message})", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pt"]


def test_more_blocks_than_any_model_has_are_refused_whose_entries_are_all_there() -> None:
    source = Source(Path("many.pt"), dict.fromkeys(map(str, range(6 * 260)), torch.zeros(1)), {}, None)
    check_blocks(source, {"channel_multipliers": [1, 2], "num_res_blocks": 126, "num_middle_blocks": 4})
    with pytest.raises(ValueError, match="its names are those of 260 blocks: expected at most 256, more than any"):
        check_blocks(source, {"channel_multipliers": [1, 2], "num_res_blocks": 128}, {"depth": 4})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (packed({"a": torch.zeros(2**20)}), "entry '.*' is damaged"),
        (b"\x80\x02}q\x00.", "is no checkpoint, or ends too early"),
        (b"", "is no checkpoint, or ends too early"),
    ],
)
def test_other_archives_are_refused(content, message, tmp_path) -> None:
    (tmp_path / "weights.pt").write_bytes(content)
    with pytest.raises(ValueError, match=f"weights.pt: {message}"):
        convert(tmp_path / "weights.pt", tmp_path / "converted")


class Counted(dict):
    """Counts how often all names are looked at."""

    passes = 0

    def __iter__(self) -> Any:
        self.passes += 1
        return super().__iter__()


def test_levels_are_counted_in_one_pass_over_the_names(tmp_path) -> None:
    state = Counted({f"encoder.down.{level}.block.0.conv1.weight": torch.zeros(32, 1, 1, 1) for level in range(40)})
    state["quant_conv.weight"] = torch.zeros(2, 2, 1, 1)
    sizes = TamingVQGAN.encoder.sizes(Source(tmp_path, state, {}, None))
    assert sizes["channel_multipliers"] == [1] * 40 and state.passes == 1


def test_a_folder_without_weights_is_refused(tmp_path) -> None:
    with pytest.raises(
        FileNotFoundError, match="expected a file of weights, or a folder with one of diffusion_pytorch"
    ):
        convert(tmp_path, tmp_path / "converted")


# ---------------------------------------------------------------------- licenses


@pytest.mark.parametrize(
    ("card", "arguments", "expected"),
    [
        (None, {}, "mit"),
        ("---\nlicense: cc-by-nc-4.0\n---\n", {"accept_license": "cc-by-nc-4.0"}, "cc-by-nc-4.0"),
    ],
)
def test_the_license_is_that_of_the_card_or_of_the_family(card, arguments, expected, tmp_path) -> None:
    save_file(state_of(Taming), tmp_path / "weights.safetensors")
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    convert(tmp_path / "weights.safetensors", tmp_path / "converted", **arguments)
    loaded = Tokenizer.from_pretrained(tmp_path / "converted")
    assert loaded.provenance == {
        "family": TamingVQGAN.name,
        "file": "weights.safetensors",
        "license": expected,
    }


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: apache-2.0 # all of it\ntags: [a]\n---\n# Model\n", "apache-2.0"),
        ("# Model\nlicense: wrong\n", None),
        ("---\nlicense:\n---\n", None),
        ("\ufeff---\nlicense: 'cc-by-nc-4.0'\n---\n", "cc-by-nc-4.0"),
        ("---\nlicense:\n- mit\n- cc-by-nc-4.0\ntags:\n- a\n---\n", "mit cc-by-nc-4.0"),
        ("---\nlicense:\n- mit # code\n\n- cc-by-nc-4.0 # weights\n---\n", "mit cc-by-nc-4.0"),
        ('---\n"license": cc-by-nc-4.0\n---\n', "cc-by-nc-4.0"),
        ("---\nlicense: [cc-by-nc-4.0]\n---\n", "cc-by-nc-4.0"),
        ('---\nlicense: "CC BY-NC 4.0"\n---\n', "CC BY-NC 4.0"),
        ("---\nlicense: other\nlicense_name: somebodys-non-commercial\n---\n", "somebodys-non-commercial"),
        ("---\nlicense: other\n---\n", "other"),
    ],
)
def test_the_license_of_a_card_is_read_in_all_its_forms(card, expected, tmp_path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "weights.safetensors")
    (tmp_path / "README.md").write_text(card, encoding="utf-8")
    assert read_source(tmp_path / "weights.safetensors").license == expected


@pytest.mark.parametrize(
    ("terms", "accepted"),
    [
        ("cc-by-nc-4.0", None),
        ("CC-BY-NC-SA-4.0", "mit"),
        ("CC_BY_NC", None),
        ("mit cc-by-nc-4.0", "mit"),
        ("non-commercial", None),
        ("Non Commercial", None),
        ("research-only", None),
        ("academic use only", None),
    ],
)
def test_a_non_commercial_license_has_to_be_accepted(terms, accepted, tmp_path) -> None:
    refuses(
        state_of(Taming),
        f"forbids commercial use; if you keep to it, give accept_license='{terms}'",
        tmp_path,
        license=terms,
        accept_license=accepted,
    )


def test_the_command_converts_and_says_whose_weights_they_are(tmp_path, capsys) -> None:
    file = written(state_of(Taming), tmp_path)
    words = ["convert", "--license", "cc-by-nc-4.0", str(file), str(tmp_path / "converted")]
    assert main(words) == 2 and "give accept_license='cc-by-nc-4.0'" in capsys.readouterr().err
    assert main([*words, "--accept-license", "cc-by-nc-4.0"]) == 0
    told = f"family {TamingVQGAN.name}, file weights.pt, license cc-by-nc-4.0 -> {tmp_path / 'converted'}\n"
    assert capsys.readouterr().out == told
    assert isinstance(Tokenizer.from_pretrained(tmp_path / "converted"), Tokenizer)


def test_a_provenance_that_is_no_text_is_refused(tmp_path) -> None:
    convert(written(state_of(Taming), tmp_path), tmp_path / "converted")
    config = tmp_path / "converted/config.json"
    config.write_text(config.read_text().replace('"license": "mit"', '"license": 1'))
    with pytest.raises(ValueError, match=r"config.json: provenance=.*: expected names and texts"):
        Tokenizer.from_pretrained(tmp_path / "converted")
    tokenizer = make_tokenizer()
    tokenizer.provenance = {"year": 2024}
    with pytest.raises(ValueError, match=r"provenance=.*2024.*: expected names and texts"):
        tokenizer.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()

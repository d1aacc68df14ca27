"""Files of format version 1 load, encode and decode as they did, and are saved again in the current format."""

import importlib
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from vqkit import BSQ, LFQ, BaseQuantizer, GroupedQuantizer, MSBFirstLFQ, Quantizer, TextbookBSQ, Tokenizer
from vqkit.saving.config import resolve_class
from vqkit.saving.migration import MOVED_MODULES, RENAMED_CLASSES, current_path, to_current_version
from vqkit.saving.pretrained import FORMAT_VERSION

FORMAT_1 = Path(__file__).parent / "format_1"
SAVED = sorted(path for path in FORMAT_1.iterdir() if path.is_dir())
BACKBONES = {"image", "audio", "cross_scale"}


def load(folder: Path) -> BaseQuantizer | Tokenizer:
    """The module of a fixture, by the class that a user would call."""
    return (Tokenizer if folder.name in BACKBONES else BaseQuantizer).from_pretrained(folder)


def products(module: nn.Module) -> int:
    """How many products the layers and norms add up on the way to one value: 0 if decoding only looks up."""
    layers = sum(part.weight[0].numel() for part in module.modules() if isinstance(part, nn.Linear | _ConvNd))
    return layers + sum(part.dim for part in module.modules() if isinstance(part, Quantizer) and part.normalize)


def assert_same(module: BaseQuantizer | Tokenizer, example: dict[str, Tensor]) -> None:
    """The indices are equal, and the values to the bit where no products are added up.

    Where they are, another processor may add in another order. Each product and its addition round by half an eps at
    most, relative to a value that is taken to be no larger than the largest result: to first order, with layers that
    amplify by one at most.
    """
    torch.testing.assert_close(module.encode(example["x"]), example["indices"], rtol=0, atol=0)
    expected = example["decoded"]
    bound = 2 * products(module) * torch.finfo(torch.float32).eps / 2 * expected.abs().max().item()
    torch.testing.assert_close(module.decode(example["indices"]), expected, rtol=0, atol=bound)


@pytest.mark.parametrize("folder", SAVED, ids=lambda folder: folder.name)
@torch.no_grad()
def test_loads_and_saves_again(folder: Path, tmp_path: Path) -> None:
    """Before and after a round through the current format."""
    example = load_file(folder / "example.safetensors")
    module = load(folder)
    assert_same(module, example)
    module.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["format_version"] == FORMAT_VERSION
    again = type(module).from_pretrained(tmp_path)
    assert_same(again, example)
    assert again.state_dict().keys() == module.state_dict().keys()


@pytest.mark.parametrize("scale", ["lambda", "one"])
@pytest.mark.parametrize("radial", ["keep", "drop"])
@pytest.mark.parametrize("obtuse", ["ste", "rotate"])
def test_rotation_tricks(scale: str, radial: str, obtuse: str) -> None:
    """Three strings became a class and an angle."""
    arguments = {"scale": scale, "radial": radial, "obtuse": obtuse}
    migrated = to_current_version([{"class_path": "vqkit.estimators.RotationTrick", "init_args": arguments}], 1)[0]
    name = ("Unscaled" if scale == "one" else "") + ("Tangential" if radial == "drop" else "") + "RotationTrick"
    angle = 90.0 if obtuse == "ste" else 180.0
    assert migrated == {"class_path": f"vqkit.{name}", "init_args": {"largest_angle": angle}}


@pytest.mark.parametrize(
    ("build", "argument", "value", "old"),
    [
        (TextbookBSQ, "gradient", "textbook", "BSQ"),
        (BSQ, "gradient", "published", "BSQ"),
        (MSBFirstLFQ, "bit_order", "msb_first", "LFQ"),
        (LFQ, "bit_order", "lsb_first", "LFQ"),
    ],
)
def test_strings_of_version_2_became_classes(
    build: type[LFQ | BSQ], argument: str, value: str, old: str, tmp_path: Path
) -> None:
    """At the root of a file, and as the factory of a composite's members."""
    saved = GroupedQuantizer(partial(build, 3), 2)
    saved.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config |= {"format_version": 2}
    config["init_args"]["group"] |= {"factory": f"vqkit.{old}", "init_args": {argument: value}}
    path.write_text(json.dumps(config))
    assert {type(group) for group in GroupedQuantizer.from_pretrained(tmp_path).groups} == {build}
    root = {"class_path": f"vqkit.{old}", "init_args": {"bits": 3, argument: value}}
    assert to_current_version(root, 2) == {"class_path": f"vqkit.{build.__name__}", "init_args": {"bits": 3}}


def test_renamed_classes_exist() -> None:
    """A table that names what is not there would refuse a file with a wrong new name."""
    for path in RENAMED_CLASSES.values():
        assert resolve_class(path).__name__ == path.rpartition(".")[2]


def test_moved_modules_exist() -> None:
    """As for the classes."""
    for path in MOVED_MODULES.values():
        importlib.import_module(path)


def test_a_part_of_a_backbone_is_found_where_it_moved() -> None:
    """`ConvEncoder1d(transformer=...)` is a factory, which a file names by module and class."""
    path = current_path("vqkit.backbones.transformer.WindowedTransformer")
    assert resolve_class(path).__name__ == "WindowedTransformer"


@pytest.mark.parametrize(
    "path", ["vqkit.quantizer.Quantizer", "vqkit.CodeSplit", "vqkit.cross_scale.CrossScaleTokenizer"]
)
def test_old_path_is_refused_with_its_new_name(path: str) -> None:
    """Where no version is given, as in YAML, nothing is guessed."""
    with pytest.raises(ValueError, match=r"is called 'vqkit\."):
        resolve_class(path)


def test_other_packages_keep_their_names() -> None:
    """The tables speak of classes of vqkit alone."""
    strange = {"class_path": "other.CodeSplit", "init_args": {}}
    assert to_current_version(strange, 1) == strange

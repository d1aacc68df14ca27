"""`--quantizer` with the name of an overlay: any composite in any configuration, in its sizes."""

import warnings

import pytest
import torch
from jsonargparse import ArgumentParser

from tests.few import few
from tests.trainers.conftest import ROOT
from tests.trainers.test_swap import PARSER, parsed
from trainers.run.arrangements import ARRANGEMENTS, FOLDER
from trainers.run.bases import read_config
from trainers.run.swap import WORDS, swapped
from vqkit import BaseQuantizer, MultiScaleQuantizer

NAMES = [name for name in ARRANGEMENTS if name not in WORDS]
CONFIGS = {"image": "image/quickstart", "audio": "audio/quickstart"}
KINDS = {"image": (2, 32, 16, 16), "audio": (2, 64, 32)}


def config_of(kind, quantizer=None):
    """A model, with all arguments of its quantizer, or of another one."""
    model = read_config(ROOT / f"configs/{CONFIGS[kind]}.yaml")["model"]
    tokenizer = model["init_args"]["tokenizer"]["init_args"]
    tokenizer["quantizer"] = parsed(quantizer or tokenizer["quantizer"])
    return model


def quantizer_of(model):
    return model["init_args"]["tokenizer"]["init_args"]["quantizer"]


def built(node):
    return PARSER.instantiate(PARSER.parse_object({"quantizer": node}))["quantizer"]


@pytest.mark.parametrize("kind", few([*KINDS], "image"))
@pytest.mark.parametrize("name", NAMES)
def test_every_composite_takes_the_sizes_of_the_configuration(name, kind):
    model, x = config_of(kind), torch.randn(KINDS[kind])
    made, lines = swapped(model, name)
    quantizer, native = built(quantizer_of(made)), built(overlay(name))
    assert quantizer.dim == x.shape[1] and quantizer.channel_dim == 1 and len(lines) <= 1
    again = config_of(kind, quantizer_of(made))
    assert swapped(again, name) == (again, [])
    if (name, kind) == ("single", "image"):  # as it is
        assert lines == [] and made == model
        return
    assert quantizer.level_sizes == native.level_sizes
    assert lines == [
        f"{name}: {type(native).__name__} of dim {x.shape[1]}, in place of {type(built(quantizer_of(model))).__name__}"
    ]
    if name == "snac" and kind == "image":
        with pytest.raises(ValueError, match=r"expected \(B, T\) with a multiple of 4 frames"):
            quantizer(x)
        return
    if isinstance(quantizer, MultiScaleQuantizer):
        assert len(quantizer.grids[0]) == x.ndim - 2
    output = quantizer.eval()(x)
    assert torch.equal(quantizer.decode(output.indices), output.quantized) and quantizer.codebook_size > 1


def overlay(name):
    return read_config(FOLDER / f"{name}.yaml")["model.init_args.tokenizer.init_args.quantizer"]


def test_what_is_arranged_so_keeps_its_sizes():
    """So that a run is resumed with what its own config.yaml says."""
    node = quantizer_of(swapped(config_of("audio"), "var")[0])
    node["init_args"]["scales"] = [1, 4]
    model = config_of("audio", node)
    assert swapped(model, "var") == (model, [])
    assert quantizer_of(swapped(model, "infinity")[0])["init_args"]["stage"]["class_path"] == "vqkit.BSQ"


def test_what_cannot_be_arranged_is_refused():
    model = config_of(
        "image", {"class_path": "vqkit.Quantizer", "init_args": {"method": "vq", "dim": 30, "codebook_size": 8}}
    )
    with pytest.raises(
        ValueError, match="quantizer='grouped': dim=30 is not divided as its GroupedQuantizer of dim=32 is"
    ):
        swapped(model, "grouped")
    model["init_args"]["tokenizer"]["init_args"]["quantizer"]["init_args"]["dim"] = 12
    with pytest.raises(ValueError, match=r"'unitok': dim=12 and the 64 .*: expected one of \[1, 2, 4, 8, 16, 32, 64\]"):
        swapped(model, "unitok")
    streams = read_config(ROOT / "configs/audio/esc_16khz.yaml")["model"]
    with pytest.raises(ValueError, match="CrossScaleTokenizer takes streams of its own, and no other composite"):
        swapped(streams, "var")
    with pytest.raises(ValueError, match=r"expected one of vq, .* xqgan; did you mean"):
        swapped(model, "snak")


@pytest.mark.parametrize("members", [{"method": "ema"}, [{"method": "ema"}, {"method": "vq"}]], ids=["one", "list"])
@pytest.mark.parametrize("composite", ["GroupedQuantizer", "ResidualQuantizer"])
def test_a_run_records_the_members_of_a_composite(composite: str, members: dict | list) -> None:
    def member(arguments: dict) -> dict:
        return {"class_path": "vqkit.Quantizer", "init_args": {"dim": 4, "codebook_size": 8, **arguments}}

    name, number = ("group", "num_groups") if composite == "GroupedQuantizer" else ("stage", "num_stages")
    given = [member(each) for each in members] if isinstance(members, list) else member(members)
    arguments = {name: given} if isinstance(members, list) else {name: given, number: 2}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--quantizer", type=BaseQuantizer)
    parsed = parser.parse_object({"quantizer": {"class_path": f"vqkit.{composite}", "init_args": arguments}})
    with warnings.catch_warnings(action="ignore"):  # as an error, the warning would lead to another way of writing it
        recorded = parser.dump(parsed)
    assert parser.instantiate(parser.parse_string(recorded)).quantizer.level_sizes == (8, 8)

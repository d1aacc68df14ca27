"""Weights of the MAGVIT-2 family that are not what they should be; what they compute is in `test_families.py`."""

import re

import pytest
import torch

from tests.conversion.files import filled, refuses
from tests.conversion.magvit2 import MAGVIT2, TABLE, OpenMAGVIT2Model, SimVQModel
from vqkit import convert
from vqkit.conversion import Family, OpenMAGVIT2, SimVQImage

KINDS: list[tuple[type[MAGVIT2], Family]] = [(OpenMAGVIT2Model, OpenMAGVIT2()), (SimVQModel, SimVQImage())]


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("encoder.conv_in.weight", None, "entry 'encoder.conv_in.weight' is missing: expected a tensor of 4 axes"),
        ("decoder.conv_in.bias", None, "entry 'decoder.conv_in.bias' is missing: expected shape (64,)"),
        ("encoder.down.0.block.0.conv1.weight", None, "'encoder.down.0.block.0.conv1.weight' is missing"),
        ("encoder.mid_block.0.norm1.bias", None, "entry 'encoder.mid_block.0.norm1.bias' is missing"),
        ("decoder.up.1.upsample.conv1.bias", None, "'decoder.up.1.upsample.conv1.bias' is missing: expected shape"),
        ("encoder.conv_in.bias", (32,), "entry 'encoder.conv_in.bias' of shape (32,) is unexpected"),
        ("quant_conv.weight", (1, 1, 1, 1), "entry 'quant_conv.weight' of shape (1, 1, 1, 1) is unexpected"),
        ("decoder.mid_block.2.more", (2,), "entry 'decoder.mid_block.2.conv1.weight' is missing"),
        ("decoder.conv_out.weight", (3, 9, 3, 3), "'decoder.conv_out.weight' has shape (3, 9, 3, 3): expected (3, 32,"),
        ("encoder.down.0.block.0.conv1.weight", (32,), "has shape (32,): expected 4 axes"),
        ("decoder.conv_in.weight", (64, 5, 3, 3), "decoder.dim=5 and quantizer.dim=14"),
    ],
)
@pytest.mark.parametrize(("cls", "family"), [KINDS[0], pytest.param(*KINDS[1], marks=pytest.mark.slow)])
def test_entries_that_are_not_those_of_the_family_are_named(cls, family, name, shape, message, tmp_path) -> None:
    state = dict(filled(cls, dim=14).state)
    state.pop(name, None)
    if shape is not None:
        state[name] = torch.zeros(shape)
    refuses(state, f"weights.pt: does not hold the weights of {family.name}: .*{re.escape(message)}", tmp_path)


def test_tables_that_are_not_those_of_simvq_are_named(tmp_path) -> None:
    for name, shape, message in (
        (TABLE, None, f"entry '{TABLE}' is missing"),
        (TABLE, (48, 5), "dim=5"),
        ("quantize.embedding_proj.weight", (14, 9), r"embedding_proj.weight' has shape \(14, 9\): expected \(14, 14\)"),
        ("quantize.embedding_proj.bias", None, r"embedding_proj.bias' is missing: expected shape \(14,\)"),
    ):
        state = {key: value for key, value in filled(SimVQModel, dim=14).state.items() if key != name}
        refuses(state | ({} if shape is None else {name: torch.zeros(shape)}), message, tmp_path)


@pytest.mark.parametrize("name", ["decoderconv_outbias", "quantizeembedding_projbias"])
def test_an_average_that_is_missing_is_named(name, tmp_path) -> None:
    """Only the table may have none."""
    state = filled(SimVQModel, dim=14).checkpoint()
    del state[f"model_ema.{name}"]
    refuses(state, rf"'model_ema\.{name}' is missing: expected the average", tmp_path)


def test_an_average_of_the_table_is_taken_where_it_was_trained_too(tmp_path) -> None:
    state = filled(SimVQModel, dim=14).checkpoint() | {TABLE: torch.zeros(48, 14)}
    state[f"model_ema.{TABLE.replace('.', '')}"] = trained = torch.randn(48, 14)
    torch.save(state, tmp_path / "weights.pt")
    quantizer = convert(tmp_path / "weights.pt", tmp_path / "converted").quantizer
    assert torch.equal(quantizer.get_buffer("codebook.base"), trained)


def test_names_that_wetok_shares_are_not_guessed(tmp_path) -> None:
    state = filled(OpenMAGVIT2Model, dim=16).checkpoint()
    refuses(state, r"latents of 16 channels: those of Open.* have 14 or 18.*family=OpenMAGVIT2\(\)", tmp_path)
    assert (
        convert(tmp_path / "weights.pt", tmp_path / "converted", family=OpenMAGVIT2()).quantizer.codebook_size == 2**16
    )

"""Recipes of DAC and SNAC: what their heads say, and their sizes beside the classes of the released models."""

import re
import warnings
from pathlib import Path

import pytest
import recipes
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
KBPS = {"dac_16khz": 6.0, "dac_24khz": 24.0, "dac_44khz": 9 * 10 * 44.1 / 512, "snac_24khz": 7 * 12 * 24 / 2048}
"""Levels, bits, samples a millisecond and samples of a frame; of SNAC 1 + 2 + 4 indices of 12 bits in 2048 samples."""
RECIPES = {name: recipes.Recipe(ROOT / f"configs/audio/{name}.yaml") for name in KBPS}


def count(module: nn.Module) -> int:
    """Numbers, without the lengths of the filters that weight norm adds."""
    lengths = (".weight_g", ".original0")
    return sum(value.numel() for name, value in module.named_parameters() if not name.endswith(lengths))


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_the_head_says_whose_it_is_what_is_published_and_what_differs(recipe) -> None:
    assert list(recipe.head) == ["", *recipes.SECTIONS] and all(recipe.head.values())
    assert re.search(r"arXiv:\d{4}\.\d{4,5}\b", recipe.head["Source"]), "a paper"
    assert "not stated" in recipe.head["Published"]
    assert recipe.config["name"] == recipe.name


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in KBPS if "dac" in name])
def test_dac_has_the_published_layers_and_rate(name: str) -> None:
    from transformers import DacConfig, DacModel

    rate, levels, strides = {
        "dac_16khz": (16000, 12, [2, 4, 5, 8]),
        "dac_24khz": (24000, 32, [2, 4, 5, 8]),
        "dac_44khz": (44100, 9, [2, 4, 8, 8]),
    }[name]
    with torch.device("meta"):
        model = DacModel(DacConfig(downsampling_ratios=strides, n_codebooks=levels, sampling_rate=rate))
    codec = RECIPES[name].tokenizer
    for part in ("encoder", "quantizer", "decoder"):
        assert count(getattr(codec, part)) == count(getattr(model, part)), part
    assert codec.sample_rate == rate and codec.kbps == pytest.approx(KBPS[name])


@pytest.mark.slow
def test_snac_has_the_published_layers_size_and_rate() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
        from snac import SNAC

    sizes = {"encoder_dim": 48, "encoder_rates": [2, 4, 8, 8], "decoder_dim": 1024, "decoder_rates": [8, 8, 4, 2]}
    with torch.device("meta"):
        model = SNAC(sampling_rate=24000, attn_window_size=None, vq_strides=[4, 2, 1], **sizes)
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e5) == 198
    codec = RECIPES["snac_24khz"].tokenizer
    for part in ("encoder", "quantizer", "decoder"):
        assert count(getattr(codec, part)) == count(getattr(model, part)), part
    assert codec.kbps == pytest.approx(KBPS["snac_24khz"])

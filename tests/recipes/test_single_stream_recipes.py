"""Recipes of codecs with one codebook: what their heads say, and their sizes beside the classes of transformers."""

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import recipes  # noqa: E402

NAMES = ("wavtokenizer_24khz", "bigcodec_16khz", "xcodec2_16khz")
RECIPES = {name: recipes.Recipe(ROOT / f"configs/audio/{name}.yaml") for name in NAMES}
KBPS = {"wavtokenizer_24khz": 0.9, "bigcodec_16khz": 1.04, "xcodec2_16khz": 0.8}


def count(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def lengths(module: nn.Module) -> int:
    """Of the filters of all convolutions: what weight norm has more than the filters."""
    return sum(layer.out_channels for layer in module.modules() if isinstance(layer, nn.Conv1d))


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_the_head_says_whose_it_is_what_is_published_and_what_differs(recipe) -> None:
    assert list(recipe.head) == ["", *recipes.SECTIONS] and all(recipe.head.values())
    assert re.search(r"arXiv:\d{4}\.\d{4,5}\b", recipe.head["Source"]), "a paper"
    assert re.search(r"UTMOS \d.* on LibriSpeech test-clean", recipe.head["Published"]), "a figure with its data"
    assert recipe.config["name"] == recipe.name


@pytest.mark.slow
def test_wavtokenizer_has_the_published_layers() -> None:
    """And one condition of each of 13 norms in the place of four, a scale and a shift of 768 channels."""
    from transformers import WavTokenizerConfig, WavTokenizerModel

    with torch.device("meta"):
        model = WavTokenizerModel(WavTokenizerConfig(upsampling_ratios=[8, 5, 4, 2]))
    found = RECIPES["wavtokenizer_24khz"].parameters()
    assert found["encoder"] == count(model.encoder_model.encoder)
    assert found["quantizer"] == 4096 * 512
    assert found["decoder"] == count(model.backbone, model.head) - 3 * 13 * 2 * 768


@pytest.mark.slow
def test_bigcodec_has_the_published_layers_and_size() -> None:
    """Its encoder is that of X-Codec 2 with other strides and an LSTM of two layers."""
    from transformers import Xcodec2Config
    from transformers.models.xcodec2.modeling_xcodec2 import Xcodec2Encoder

    with torch.device("meta"):
        encoder = Xcodec2Encoder(Xcodec2Config(downsampling_ratios=[2, 2, 2, 5, 5]))
    width = 48 * 2**5
    found = RECIPES["bigcodec_16khz"].parameters()
    assert found["encoder"] == count(encoder) + lengths(encoder) + 2 * 4 * (2 * width * width + 2 * width)
    assert found["quantizer"] == 8192 * 8 + (1024 * 8 + 8) + (8 * 1024 + 1024)
    assert round(sum(found[part] for part in ("encoder", "quantizer", "decoder")) / 1e6) == 159


@pytest.mark.slow
def test_xcodec2_has_the_published_layers_but_for_the_semantic_half() -> None:
    """Each transformer layer has two norms with a shift, and two factors of its branches, more than the published."""
    from transformers import Xcodec2Config
    from transformers.models.xcodec2.modeling_xcodec2 import Xcodec2Decoder, Xcodec2Encoder

    with torch.device("meta"):
        encoder, decoder = Xcodec2Encoder(Xcodec2Config()), Xcodec2Decoder(Xcodec2Config())
    found = RECIPES["xcodec2_16khz"].parameters()
    assert found["encoder"] == count(encoder) + lengths(encoder)
    assert found["decoder"] == count(decoder) - count(decoder.fc) + 12 * 4 * 1024


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_rates_are_the_published_ones(name: str) -> None:
    assert RECIPES[name].tokenizer.kbps == pytest.approx(KBPS[name])

"""SNAC with random weights, by the class of the package `snac`."""

import json
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.conversion.sound import shake
from vqkit import AudioTokenizer, Tokenizer, convert
from vqkit.backbones.noise1d import injected_noise

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
    import snac

ROUNDING = 1e-5
"""Filters are rounded to float32 once more, 2^-24 of each, in some fifty layers of about their own variance."""
KINDS: dict[str, dict[str, Any]] = {
    "24 kHz": {"encoder_rates": [2, 3], "decoder_rates": [3, 2], "vq_strides": [4, 2, 1], "attn_window_size": None},
    "32 and 44 kHz": {"encoder_rates": [2, 3], "decoder_rates": [3, 2], "vq_strides": [4, 2], "attn_window_size": 6},
    "without noise": {"encoder_rates": [5], "decoder_rates": [5], "vq_strides": [1], "noise": False,
                      "attn_window_size": 4, "encoder_dim": 32, "decoder_dim": 128},
}  # fmt: skip


@cache
def model(kind: str) -> snac.SNAC:
    options = {"sampling_rate": 24000, "encoder_dim": 16, "decoder_dim": 64, "codebook_size": 16, "codebook_dim": 4}
    made = snac.SNAC(**options | KINDS[kind]).eval()
    shake(made)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in made.named_parameters():
        if name.endswith("original0"):  # g, of other lengths than the filters have
            quiet = 0.2 if "linear" in name else 1.0
            nn.init.uniform_(parameter, 0.7 * quiet, 1.3 * quiet, generator=generator)
        elif "to_" in name:
            nn.init.normal_(parameter, std=len(parameter) ** -0.5, generator=generator)
    with torch.no_grad():  # within the straight part of the hyperbolic tangent
        loud = made.decoder.model[:-1](made.quantizer.from_codes(made.encode(wave(401)))).std()
        made.decoder.model[-2].parametrizations.weight.original0.mul_(0.3 / loud)
    return made


def published(kind: str, folder: Path, **settings: Any) -> Path:
    options = {"sampling_rate": 24000, "encoder_dim": 16, "decoder_dim": 64, "noise": True, "depthwise": True}
    torch.save(model(kind).state_dict(), folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(options | KINDS[kind] | settings))
    return folder


def wave(samples: int) -> torch.Tensor:
    return torch.randn(2, 1, samples, generator=torch.Generator().manual_seed(1)) / 3


@pytest.mark.parametrize(
    "kind", ["32 and 44 kHz"] + [pytest.param(k, marks=pytest.mark.slow) for k in KINDS if "2 a" not in k]
)
def test_codes_and_sound_are_those_of_the_package(kind: str, tmp_path: Path) -> None:
    """Of any number of samples, at each number of levels, and with the noise of the same seed."""
    convert(published(kind, tmp_path), tmp_path / "converted")
    codec, released = Tokenizer.from_pretrained(tmp_path / "converted").double(), model(kind).double()
    assert isinstance(codec, AudioTokenizer) and codec.provenance is not None and codec.provenance["license"] == "mit"
    sound = wave(401).double()
    with torch.no_grad():
        codes, indices = released.encode(sound), codec.encode(sound)
        assert len(torch.cat(codes, 1).unique()) >= 8
        levels = codec.quantizer.split_levels(indices)
        assert all(torch.equal(found, expected) for found, expected in zip(levels, codes, strict=True))
        torch.manual_seed(5)
        expected = released.decode(codes)
        if KINDS[kind].get("noise", True):
            with injected_noise(codec, torch.Generator().manual_seed(5)):
                found = codec.decode(indices)
            torch.testing.assert_close(found.double(), expected, rtol=0, atol=ROUNDING)
            assert (codec.decode(indices) - expected).abs().max() > 0.02
        quieten(released)
        for count in range(1, len(codes) + 1):
            coarse = sum(
                released.quantizer.quantizers[level]
                .out_proj(released.quantizer.quantizers[level].decode_code(codes[level]))
                .repeat_interleave(released.vq_strides[level], -1)
                for level in range(count)
            )
            found = codec.decode(codec.quantizer.prefix(indices, count))
            torch.testing.assert_close(found.double(), released.decoder(coarse), rtol=0, atol=ROUNDING)
    model.cache_clear()


def quieten(released: nn.Module) -> None:
    """Noise off, by the maps that it is multiplied with."""
    for name, parameter in released.named_parameters():
        if name.endswith("linear.parametrizations.weight.original0"):
            nn.init.zeros_(parameter)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vq_strides": [4]}, r"vq_strides=\[4\] in its config.json: expected frames for each index of 2 levels"),
        ({"attn_window_size": None}, "config.json has attn_window_size=None: expected a positive whole number"),
        ({"sampling_rate": "44.1 kHz"}, "config.json has sampling_rate='44.1 kHz'"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"does not hold the weights of SNAC: {message}"):
        convert(published("32 and 44 kHz", tmp_path, **settings), tmp_path / "converted")


def test_other_rotary_frequencies_and_entries_are_refused(tmp_path: Path) -> None:
    folder = published("32 and 44 kHz", tmp_path)
    state = dict(model("32 and 44 kHz").state_dict())
    (name, _) = [name for name in state if name.endswith("inv_freq")]
    torch.save(state | {name: state[name] * 2}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=f"entry '{name}' holds other rotary frequencies"):
        convert(folder, tmp_path / "converted")
    del state["decoder.model.3.block.2.linear.parametrizations.weight.original0"]
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"entry 'decoder.model.3.block.2.linear.weight' is missing"):
        convert(folder, tmp_path / "converted")

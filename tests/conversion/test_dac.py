"""DAC with random weights, by the class of transformers, in the layout of its authors and in that of transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.conversion.files import added, refuses, removed
from tests.conversion.sound import NORMED, authors_names, dac, normed, sound
from vqkit import AudioTokenizer, Tokenizer, convert
from vqkit.backbones.activations import SignedSnake
from vqkit.conversion import DAC
from vqkit.conversion.source import read_source

ROUNDING = 1e-5
"""Filters are rounded to float32 once more, 2^-24 of each, in some fifty layers of about their own variance."""
KINDS = ("authors", "authors new", "authors folded", "transformers", "transformers normed")
PARAMETRIZED = ("parametrizations.weight.original0", "parametrizations.weight.original1")


def published(kind: str, folder: Path, strides: tuple[int, ...] = (2, 5), **metadata: Any) -> Path:
    """A file in one of the layouts, or a folder."""
    model = dac(strides)
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    if kind.startswith("transformers"):
        state = normed(state, PARAMETRIZED) if kind.endswith("normed") else state
        save_file(state, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(model.config.to_dict()))
        return folder
    state = authors_names(state, len(strides))
    state = state if kind.endswith("folded") else normed(state, PARAMETRIZED if kind.endswith("new") else NORMED)
    metadata = {"kwargs": {"sample_rate": 24000, "latent_dim": None, "quantizer_dropout": True}} | metadata
    torch.save({"state_dict": state, "metadata": metadata}, folder / "weights.pth")
    return folder / "weights.pth"


def compared(codec: AudioTokenizer, strides: tuple[int, ...], frames: int) -> None:
    """Latents, codes, and the sound of each number of levels; what DAC lacks at the end is 0."""
    model, codec = dac(strides).double(), codec.double()
    wave = sound(frames, codec.downsampling_factor)
    with torch.no_grad():
        latents, codes = model.encoder(wave), model.encode(wave).audio_codes
        assert len(codes.unique()) >= 8
        torch.testing.assert_close(codec.encoder(wave), latents, rtol=0, atol=ROUNDING)
        indices = codec.encode(wave)
        assert torch.equal(indices, codes.mT)
        for levels in range(1, codes.shape[1] + 1):
            expected = model.decode(audio_codes=codes[:, :levels]).audio_values
            found = codec.decode(indices[..., :levels])[:, 0].double()
            assert found.shape[-1] == wave.shape[-1]
            torch.testing.assert_close(found[:, : expected.shape[-1]], expected, rtol=0, atol=ROUNDING)
            assert not found[:, expected.shape[-1] :].any()
    model.float()


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[pytest.mark.slow] * (kind != "authors")) for kind in KINDS],
)
def test_codes_and_sound_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    codec = convert(published(kind, tmp_path), tmp_path / "converted")
    assert isinstance(codec, AudioTokenizer) and (codec.sample_rate, codec.downsampling_factor) == (24000, 10)
    assert codec.provenance is not None and codec.provenance["license"] == "mit"
    compared(Tokenizer.from_pretrained(tmp_path / "converted"), (2, 5), frames=40)


@pytest.mark.parametrize(
    ("strides", "missing"),
    [((2, 4, 5, 8), 8)] + [pytest.param(*pair, marks=pytest.mark.slow) for pair in (((2, 4, 8, 8), 0), ((3, 5), 4))],
)
def test_strides_of_the_released_models_and_others(strides: tuple[int, ...], missing: int, tmp_path: Path) -> None:
    """Of 16 and 24 kHz, of 44.1 kHz, and two odd ones, whose missing samples add up."""
    codec = convert(published("transformers", tmp_path, strides), tmp_path / "converted")
    silent = codec.decode(torch.zeros(1, 3, 3, dtype=torch.int64))[0, 0] == 0
    assert int(silent.sum()) == missing
    compared(codec, strides, frames=12)
    snakes = [layer for layer in codec.modules() if isinstance(layer, SignedSnake)]
    assert len(snakes) == 2 * (7 * len(strides) + 1)
    assert all((snake.frequency < 0).any() and (snake.frequency > 0).any() for snake in snakes)


def test_the_sample_rate_is_what_the_file_says_or_what_it_was_released_with(tmp_path: Path) -> None:
    file = published("authors", tmp_path, kwargs={"sample_rate": 32000})
    assert DAC().plan(read_source(file))[1].sample_rate == 32000
    assert convert(file, tmp_path / "converted", family=DAC(sample_rate=8000)).sample_rate == 8000
    with pytest.raises(ValueError, match=r"no released model has strides \[2, 5\] and 3 levels: expected family=DAC"):
        convert(published("authors", tmp_path, kwargs=None), tmp_path / "refused")
    for said in (0, True):
        with pytest.raises(ValueError, match=f"sample rate is {said!r}: expected a positive whole number"):
            DAC(sample_rate=said).plan(read_source(file))
    for said in (44100.0, "44100", -1):
        file = published("authors", tmp_path, kwargs={"sample_rate": said})
        with pytest.raises(ValueError, match=f"weights.pth: does not hold .* sample rate is {said!r}"):
            convert(file, tmp_path / "refused")


CHANGES: list[tuple[Any, str]] = [
    (removed("encoder.block.0.bias"), r"entry 'encoder.block.0.bias' is missing: expected shape \(4,\)"),
    (removed("quantizer.quantizers.0.codebook.weight"), "expected a tensor of 2 axes"),
    (
        lambda state: state.update({f"quantizer.quantizers.{level}.more": torch.ones(1) for level in range(257)}),
        "its names count more than 256 layers or codebooks of one kind",
    ),
    (
        added("encoder.block.1.block.4.weight_v", 8, 4, 5),
        "'encoder.block.1.block.4' has 5 taps: expected twice its stride",
    ),
    (removed("encoder.block.1.block.3.alpha"), r"'encoder.block.1.block.3.alpha' is missing: expected shape \(1, 4, 1"),
    (added("decoder.more", 2), r"entry 'decoder.more' of shape \(2,\) is unexpected"),
    (
        added("quantizer.quantizers.1.in_proj.weight_g", 5, 1, 1),
        r"in_proj.weight_g' has shape \(5, 1, 1\): expected \(4, 1, 1\)",
    ),
]


@pytest.mark.parametrize(
    ("change", "message"), CHANGES[:4] + [pytest.param(*pair, marks=pytest.mark.slow) for pair in CHANGES[4:]]
)
def test_other_entries_are_named(change: Any, message: str, tmp_path: Path) -> None:
    file = published("authors", tmp_path)
    content = torch.load(file, weights_only=True)
    change(content["state_dict"])
    refuses(content, f"does not hold the weights of DAC: .*{message}", tmp_path)

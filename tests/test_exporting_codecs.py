"""ONNX files of published codecs, of tiny sizes: with a free length where it can be had, and refused where it cannot.

A file that was traced at one length gives at others what eager mode gives: codes are equal, sound within its rounding.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from tests.conversion import test_dac, test_encodec, test_mimi, test_snac, test_wavtokenizer
from tests.test_exporting import File
from vqkit import AudioTokenizer, Decode, Encode, convert, export_onnx

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*[Tt]orchaudio"),
]
ROUNDING = 1e-5
"""Of samples of about 1: some thirty layers in float32, whose sums each runtime takes in an order of its own."""


class Published(NamedTuple):
    """Files of a tiny model, and how they are exported.

    Attributes:
        save: writes them into a folder, and says what to convert.
        frames: of the example.
        others: frames of recordings that it did not see; they end inside of a frame.
    """

    save: Callable[[Path], Path]
    frames: int = 24
    others: tuple[int, ...] = (60, 7, 1)


def mimi(folder: Path) -> Path:
    test_mimi.upstream().save_pretrained(folder / "published")
    return folder / "published"


PUBLISHED = {
    "DAC": Published(lambda folder: test_dac.published("transformers", folder)),
    "SNAC": Published(lambda folder: test_snac.published("32 and 44 kHz", folder)),
    "Mimi": Published(mimi),
    # A group norm of one frame has so few numbers that it divides by next to nothing: a second frame is needed.
    "WavTokenizer": Published(lambda folder: test_wavtokenizer.published("authors", folder), others=(60, 7, 2)),
    "EnCodec, 24 kHz": Published(lambda folder: test_encodec.of_the_package(music=False).save(folder)),
    "EnCodec, 48 kHz": Published(lambda folder: test_encodec.of_the_package(music=True).save(folder), frames=10),
}
RECURRENT = {"WavTokenizer": (Encode,), "EnCodec, 24 kHz": (Encode, Decode), "EnCodec, 48 kHz": (Encode, Decode)}
"""Halves with an LSTM."""
FREE = [(name, half) for name in PUBLISHED for half in (Encode, Decode) if half not in RECURRENT.get(name, ())]
MOST = [("DAC", Encode), ("DAC", Decode), ("Mimi", Encode)]
"""Run in the slow tier: those that have most of what the others are made of."""


@cache
def converted(name: str) -> AudioTokenizer:
    with TemporaryDirectory() as folder:
        return convert(PUBLISHED[name].save(Path(folder)), Path(folder) / "converted").eval()


def wave(codec: AudioTokenizer, frames: int, *, batch: int = 2, missing: int = 0) -> Tensor:
    samples = frames * codec.downsampling_factor - missing
    return torch.randn(batch, codec.channels, samples, generator=torch.Generator().manual_seed(frames)) / 3


def assert_same(file: File, half: type, codec: AudioTokenizer, x: Tensor) -> None:
    if half is Encode:
        indices = codec.encode(x)
        assert len(indices.unique()) > 1
        assert torch.equal(file(x), indices)
    else:
        indices = codec.encode(x)
        with torch.no_grad():
            expected = codec.decode(indices)
        torch.testing.assert_close(file(indices), expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(
    ("name", "half"),
    [pytest.param(*pair, marks=pytest.mark.slow if pair in MOST else pytest.mark.long) for pair in FREE],
    ids=[f"{name} {half.__name__}" for name, half in FREE],
)
def test_files_of_a_free_length_are_right_at_lengths_that_they_were_not_traced_at(
    name: str, half: type, tmp_path: Path
) -> None:
    codec, published = converted(name), PUBLISHED[name]
    example = wave(codec, published.frames)
    file = File(half(codec), example if half is Encode else codec.encode(example), tmp_path / "file.onnx")
    # Batch and time. Some fixed sizes, such as the number of levels, are named by their number.
    assert sum(not str(size).isdigit() for size in file.input.shape) == 2
    for number, frames in enumerate(published.others):
        assert_same(file, half, codec, wave(codec, frames, batch=1 + 2 * number, missing=1))


@pytest.mark.parametrize(("name", "half"), [(name, half) for name, halves in RECURRENT.items() for half in halves])
def test_a_free_length_of_a_half_with_an_lstm_is_refused(name: str, half: type, tmp_path: Path) -> None:
    codec = converted(name)
    with pytest.raises(ValueError, match=r"dynamic=True with (en|de)coder.layers.\d+.lstm, a recurrent layer"):
        export_onnx(half(codec), wave(codec, 2), tmp_path / "file.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.long
@pytest.mark.parametrize(("name", "half"), [(name, half) for name, halves in RECURRENT.items() for half in halves])
def test_files_of_one_length_have_an_lstm(name: str, half: type, tmp_path: Path) -> None:
    """The runtime refuses others: the shape of the input has the number."""
    codec, published = converted(name), PUBLISHED[name]
    example = wave(codec, published.frames)
    example = example if half is Encode else codec.encode(example)
    file = File(half(codec), example, tmp_path / "file.onnx", dynamic=False)
    assert file.input.shape == list(example.shape)
    assert_same(file, half, codec, wave(codec, published.frames))
    with pytest.raises(Exception, match="INVALID_ARGUMENT"):
        file(torch.cat([example, example], dim=2 if half is Encode else 1))

"""Sound files of packages: decoded to 16-bit samples, written as FLAC, and their hash."""

import hashlib
import importlib
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import soundfile

from fetching.debian import FetchError

SUFFIXES = (".wav", ".flac", ".g722", ".ogg")
_G722_RATE, _G722_BITS = 16000, 64000  # Hz, bits a second


class NotASound(ValueError):
    """The recording is left out; the message is the reason in one or two words, so that reasons can be counted."""


def choose(
    files: Iterable[tuple[str, bytes]], earlier: Sequence[dict[str, Any]], left_out: Counter[str]
) -> Iterator[tuple[str, str, str, bytes, dict[str, Any]]]:
    """Chooses the recordings of a package that can be read, each once; none of their samples is changed.

    As `photographs.choose`, with FLAC in the place of JPEG; packages share no recordings.
    """
    known: set[str] = set()
    for path, content in files:
        sha256 = hashlib.sha256(content).hexdigest()
        if sha256 in known:
            left_out["duplicate"] += 1
            continue
        known.add(sha256)
        try:
            samples, sample_rate = read_sound(content, path)
        except NotASound as reason:
            left_out[str(reason)] += 1
            continue
        facts = {
            "sample_rate": sample_rate,
            "channels": samples.shape[1],
            "seconds": round(len(samples) / sample_rate, 3),
            "samples_sha256": samples_sha256(samples),
        }
        name = PurePosixPath(path).with_suffix(".flac").as_posix().replace("/", "-")
        yield path, sha256, name, encode_flac(samples, sample_rate), facts


def read_sound(content: bytes, name: str) -> tuple[np.ndarray, int]:
    """Decodes a recording.

    Args:
        content: the bytes of the file.
        name: its name, whose suffix tells G.722 (which has no header) from the others.

    Returns:
        The samples, (samples, channels) int16, and the sample rate in Hz.

    Raises:
        FetchError: the decoder of G.722 is not installed.
        NotASound: the file cannot be read or is empty.
    """
    if PurePosixPath(name).suffix == ".g722":
        samples, sample_rate = _g722(content), _G722_RATE
    else:
        try:
            samples, sample_rate = soundfile.read(io.BytesIO(content), dtype="int16", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise NotASound("unreadable") from error
    if len(samples) == 0:
        raise NotASound("empty")
    return samples, sample_rate


def encode_flac(samples: np.ndarray, sample_rate: int) -> bytes:
    """Returns (samples, channels) int16 as a FLAC of 16 bits; another version of the encoder may write other bytes."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, sample_rate, format="FLAC", subtype="PCM_16", compression_level=1.0)
    return buffer.getvalue()


def samples_sha256(samples: np.ndarray) -> str:
    """Returns the sha256 of (samples, channels) int16, little-endian and interleaved: the same for any encoder."""
    return hashlib.sha256(np.ascontiguousarray(samples, dtype="<i2").tobytes()).hexdigest()


def _g722(content: bytes) -> np.ndarray:
    try:
        decoder = importlib.import_module("G722")
    except ImportError as error:
        raise FetchError(
            "its recordings are G.722, and the Python package that decodes them is not installed. Run `pip install "
            "G722` in this environment and this again, or leave the package out with --packages."
        ) from error
    return np.array(decoder.G722(_G722_RATE, _G722_BITS).decode(content), dtype=np.int16)[:, None]

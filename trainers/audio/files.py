"""Sound files: which of them can be used, and how one becomes samples. Knows soundfile and soxr, not Lightning.

Two resamplers, each where the other cannot be. Files have any sample rate, such as 44101 Hz, for which torchaudio would
need a filter of one row for each of 16000 phases: they are read through soxr, on the CPU. Waveforms that are already
tensors, in the tokenizer and in the measures, go through `vqkit.tokenizers.resampling`, on their device and without
soxr. Both are flat to 0.9 of the lower Nyquist frequency, and let nothing through that lies 5 % above it
(`tests/trainers/test_audio_data.py` measures both).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy
import soundfile
import soxr
from torch import Tensor

from trainers.data.files import Folder, content_hash, inspected
from vqkit.media.files import Found, found_under, open_plain
from vqkit.media.sound import (
    SNDFILE_SUFFIXES,
    TORCHCODEC_SUFFIXES,
    header,
    opened,
    reason,
    skip,
    torchcodec_samples,
)
from vqkit.saving.files import write_whole
from vqkit.tokens.names import escaped

MARGIN_SECONDS = 0.05  # read on either side of a part, so that the filter of the resampler sees what was there
LONGEST_SECONDS = 100 * 3600  # a header that promises more is taken for a broken one


@dataclass(frozen=True)
class AudioFile:
    """One usable sound file.

    Attributes:
        name: Path relative to the root, with forward slashes, escaped.
        frames: Samples per channel, at the file's own rate.
        sample_rate: The file's, in Hz.
        channels: The file's.
        content: 16 hexadecimal digits of a hash of the bytes, equal for identical files.
        dtype: "int16" where that holds the file's samples exactly, else "float32".
        exact: Whether the header says how many frames there are; else they were counted, and reading a part decodes
            all that is before it.
        corpus: Number of the corpus that it is of, from 0.
    """

    name: str
    frames: int
    sample_rate: int
    channels: int
    content: str
    dtype: str = "float32"
    exact: bool = True
    corpus: int = 0

    @property
    def seconds(self) -> float:
        """Duration."""
        return self.frames / self.sample_rate


def scan(root: Path, *, channels: int, min_seconds: float, files: Sequence[Path] | None = None) -> Folder[AudioFile]:
    """Finds the recordings under a folder by reading the header and the ends of every file with a sound's suffix.

    Nothing is decoded where the header can be believed (see `vqkit.media.sound`), so a file that is damaged in the
    middle, or holds numbers that are not finite, is found only when it is read. See `found_under`.

    Args:
        root: The folder, of any nesting.
        channels: Channels that are wanted; files that cannot be brought to them are skipped.
        min_seconds: Shorter recordings are skipped.
        files: Look at these alone; their names are relative to `root` where they lie under it.
    """
    found = found_under(root, SNDFILE_SUFFIXES | TORCHCODEC_SUFFIXES) if files is None else Found(list(files))
    look = partial(inspect, root=root, channels=channels, min_seconds=min_seconds)
    return inspected(root, found, look)


def inspect(path: Path, *, root: Path, channels: int, min_seconds: float) -> AudioFile | str:
    """Reads a file's header and ends: the recording, or in words why it cannot be used."""
    try:
        frames, sample_rate, own_channels, dtype, exact = header(path)
        with open_plain(path) as file:
            content = content_hash(file)
    except ValueError as error:
        return str(error)
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    if frames == 0:
        return "empty: it has no samples"
    if not 0 < frames <= LONGEST_SECONDS * sample_rate:
        return f"cannot be used: its header promises {frames} samples"
    if frames < min_seconds * sample_rate:
        return f"too short: {frames / sample_rate:.3g} s, min_seconds is {min_seconds:g}"
    if own_channels != channels and 1 not in (own_channels, channels):
        return f"has {own_channels} channels, which cannot be made {channels}"
    name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()
    return AudioFile(escaped(name), frames, sample_rate, own_channels, content, dtype, exact)


def read(path: Path, recording: AudioFile, *, start: int = 0, frames: int | None = None) -> numpy.ndarray:
    """Decodes a part of a file; only that part where the format can seek.

    Args:
        path: The file.
        recording: What `scan` found there.
        start: First sample of the part, at the file's rate.
        frames: Samples in it; None is all to the end.

    Returns:
        (frames, channels) of the recording's dtype; float32 is in the file's full scale, [-1, 1] unless it has more.

    Raises:
        ValueError: If the part cannot be decoded, is not all there, or holds numbers that are not finite; the message
            is the reason, without the file name.
    """
    frames = recording.frames - start if frames is None else frames
    try:
        if path.suffix.lower() in TORCHCODEC_SUFFIXES:
            samples = torchcodec_samples(path, recording.frames)[start : start + frames]
        else:
            samples = sndfile_part(path, recording, start, frames)
    except soundfile.LibsndfileError as error:
        raise ValueError(reason(error)) from error
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror or error}") from error
    except (RuntimeError, MemoryError) as error:  # a damaged header may promise more than there is
        raise ValueError(f"cannot be read: {error}") from error
    if len(samples) < frames:
        raise ValueError(f"ends after {start + len(samples)} of {recording.frames} samples")
    if samples.dtype.kind == "f" and not numpy.isfinite(samples).all():
        raise ValueError("has samples that are not finite numbers")
    return samples


def sndfile_part(path: Path, recording: AudioFile, start: int, frames: int) -> numpy.ndarray:
    """`frames` samples from `start` on, decoded from the beginning where the format cannot seek."""
    with opened(path, exact=recording.exact) as file:
        skip(file, start)
        return file.read(frames, dtype=recording.dtype, always_2d=True)


def resampled(samples: numpy.ndarray, old: int, new: int) -> numpy.ndarray:
    """(frames, channels) float32 from one sample rate to another, in Hz; round(frames * new / old) frames, at
    least one of what has any.
    """
    if old == new:
        return samples
    made = soxr.resample(numpy.ascontiguousarray(samples), old, new, quality="VHQ")
    frames = max(min(1, len(samples)), round(len(samples) * new / old))  # a recording of one sample stays one
    return made[:frames] if len(made) >= frames else numpy.pad(made, ((0, frames - len(made)), (0, 0)))


def within_full_scale(samples: numpy.ndarray) -> numpy.ndarray:
    """Turns down what exceeds [-1, 1], as files of floats and the ripple of a resampler do; nothing is clipped."""
    peak = float(numpy.abs(samples).max(initial=0))
    return samples / peak if peak > 1 else samples


def write_sounds(
    folder: Path, originals: Sequence[Tensor], reconstructions: Sequence[Tensor], sample_rate: int
) -> list[Path]:
    """Write 16 bit WAV files `00_original.wav`, `00_reconstruction.wav`, `01_original.wav` and so on.

    Args:
        folder: made if it is not there.
        originals: (C, T) each, in [-1, 1]; what lies beyond is clipped.
        reconstructions: like `originals`.
        sample_rate: in Hz.

    Returns:
        The files.
    """
    paths = []
    for number, pair in enumerate(zip(originals, reconstructions, strict=True)):
        for kind, wave in zip(("original", "reconstruction"), pair, strict=True):
            sound = BytesIO()
            samples = wave.detach().float().clamp(-1, 1).cpu().T.numpy()
            soundfile.write(sound, samples, sample_rate, format="WAV", subtype="PCM_16")
            paths.append(folder / f"{number:02d}_{kind}.wav")
            write_whole(paths[-1], sound.getvalue())
    return paths

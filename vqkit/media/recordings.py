"""Recordings piece by piece, in and out, at the rate and with the channels of a codec. Needs soundfile and soxr."""

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy
import soundfile
import soxr
import torch
from torch import Tensor

from vqkit.media.channels import ChannelMean, Downmix, OneChannel, channel_powers, lost_in_mixture, with_channels
from vqkit.media.sound import SoundHeader, header, pieces
from vqkit.saving.files import whole
from vqkit.tokens.names import escaped

BLOCK_SECONDS = 10
LONG_FORMATS = {"CAF", "FLAC", "MP3", "OGG", "RF64", "W64"}  # others count their bytes in 32 bits at most
MOST_BYTES = 2**32 - 1
LEFT_OUT_FORMATS = {"RAW", "SD2"}
"""Of libsndfile: without a header, and with one in another file, "._" in the current folder, on which readers crash."""


class Recording:
    """A file that is read piece by piece, at a sample rate and with a number of channels.

    Args:
        path: The file.
        sample_rate: Wanted, in Hz.
        channels: Wanted.
        downmix: How several channels become one; None takes the loudest of the whole recording.

    Attributes:
        name: The file, for people.
        header: What the file holds.
        lost: In words, where most of the sound is not in the mixture; else None.

    Raises:
        ValueError: It cannot be read, with its name, the reason and the fix.
    """

    def __init__(self, path: Path, *, sample_rate: int, channels: int, downmix: Downmix | None) -> None:
        self.path, self.sample_rate, self.channels = path, sample_rate, channels
        self.name = escaped(str(path))
        if path.is_dir() or not path.exists():
            raise ValueError(
                f"{self.name}: {'a folder' if path.is_dir() else 'there is no such file'}; expected a recording"
            )
        self.lost: str | None = None
        try:
            self.header: SoundHeader = header(path)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}; expected a recording, such as a WAV or FLAC file") from error
        if self.header.channels != channels and 1 not in (self.header.channels, channels):
            raise ValueError(f"{self.name}: {self.header.channels} channels, which cannot be made {channels}")
        self.downmix = self._chosen(downmix) if self.header.channels > channels else ChannelMean()

    def _chosen(self, downmix: Downmix | None) -> Downmix:
        """How the channels become one, after a look at the whole file."""
        powers, mixed = numpy.zeros(self.header.channels), 0.0
        for block in self._blocks(BLOCK_SECONDS):
            powers += channel_powers(block) * (len(block) / self.header.frames)
            if downmix is not None:
                mixed += float(channel_powers(downmix(block)).max()) * (len(block) / self.header.frames)
        if downmix is None:
            return OneChannel(int(powers.argmax()))
        self.lost = lost_in_mixture(powers, mixed)
        return downmix

    def _blocks(self, seconds: float) -> Iterator[numpy.ndarray]:
        try:
            yield from pieces(self.path, self.header, max(1, round(seconds * self.header.sample_rate)))
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}; mend it, or cut it there") from error

    def pieces(self, seconds: float = BLOCK_SECONDS) -> Iterator[Tensor]:
        """(1, C, samples) float32 at the wanted sample rate, of the wanted channels.

        Raises:
            ValueError: There are no samples, perhaps after resampling alone, or the file is damaged.
        """
        old, new = self.header.sample_rate, self.sample_rate
        resampler = soxr.ResampleStream(old, new, self.header.channels, quality="VHQ")
        left, found = self.header.frames, False
        for block in self._blocks(seconds):
            left -= len(block)
            piece = block if old == new else resampler.resample_chunk(block, last=left == 0)
            if len(piece):
                found = True
                mixed = with_channels(piece, self.channels, self.downmix)
                yield torch.from_numpy(numpy.ascontiguousarray(mixed.T))[None]
        if not found:
            raise ValueError(
                f"{self.name}: {self.header.frames} samples at {old} Hz, too short for {new} Hz; expected a longer one"
            )


def check_writable(target: Path) -> None:
    """Refuse a name of which the ending is no format that libsndfile writes."""
    if target.suffix[1:].upper() not in soundfile.available_formats().keys() - LEFT_OUT_FORMATS:
        raise ValueError(
            f"{escaped(str(target))}: expected a format that libsndfile writes, such as {escaped(target.stem)}.wav"
        )


def write_pieces(
    target: Path, sound: Iterable[Tensor], *, sample_rate: int, channels: int, samples: int | None = None
) -> None:
    """Pieces to a file of the target's format, whole or not at all.

    Args:
        target: The file.
        sound: (1, C, T) each, consecutive; what lies beyond [-1, 1] is clipped.
        sample_rate: In Hz.
        channels: C.
        samples: To be cut to; None keeps all.

    Raises:
        ValueError: The format has no room for so much, or not for this sample rate or number of channels.
    """
    left = samples
    with whole(target) as partial, Place(partial, target) as place:
        with soundfile.SoundFile(place, "w", sample_rate, channels) as file:
            for piece in sound:
                kept = piece if left is None else piece[..., :left]
                left = None if left is None else left - kept.shape[-1]
                file.write(kept[0].clamp(-1, 1).T.numpy())
                place.check()
                if file.format not in LONG_FORMATS and place.tell() > MOST_BYTES:
                    raise ValueError(f"{escaped(str(target))}: more than 4 GiB, which {file.format} has no room to say")
        place.check()
        written = soundfile.info(str(partial))
        if (written.samplerate, written.channels) != (sample_rate, channels):
            raise ValueError(
                f"{escaped(str(target))}: {written.format} keeps {written.samplerate} Hz and {written.channels} "
                f"channels, not {sample_rate} and {channels}: give another format, such as {escaped(target.stem)}.wav"
            )


class Place(io.FileIO):
    """A file for libsndfile, which says "System error" of a full disk, or nothing at the end of a FLAC or an MP3."""

    def __init__(self, path: Path, target: Path) -> None:
        super().__init__(path, "w+")
        self.name = str(target)  # by which the format is chosen
        self.refusal: OSError | None = None

    def write(self, data: bytes) -> int:  # type: ignore[override]
        """Write all, and keep what the system says against it."""
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.refusal = self.refusal or error
        return len(data)

    def check(self) -> None:
        """Raise what the system said."""
        if self.refusal:
            raise self.refusal

"""The codecs that are in use, at the rate nearest to a wanted one: Opus, Codec2 and Speex."""

import io
import math
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import soundfile
import torch
import torch.nn.functional as F
from torch import Tensor

from vqkit.tokenizers.resampling import resample

OPUS_RATES = (8000, 12000, 16000, 24000, 48000)
"""Sample rates in Hz that Opus takes; others are resampled to the highest."""

SPEEX_QUALITIES = range(0, 11)
CODEC2_MODES = (450, 700, 1200, 1300, 1400, 1600, 2400, 3200)
"""Bits for each second."""


@dataclass
class Coded:
    """Recordings after a codec, and their rate.

    Attributes:
        waves: (T,) each, as long as the originals and aligned with them.
        kbps: bits of the codec's own packets for each second, without container.
        file_kbps: bits of the whole files for each second; None where the format has no container.
        protocol: codec, settings, and what was counted.
    """

    waves: list[Tensor]
    kbps: float
    file_kbps: float | None
    protocol: str


def opus(waves: Sequence[Tensor], sample_rate: int, kbps: float, *, steps: int = 12) -> Coded:
    """Compress with the one setting of Opus whose packets come nearest to a rate.

    Packets are counted, without the Ogg container, since a codec's codes are counted without one as well; Opus has no
    less than about 6 kbit/s, so it may have been given more than was asked for.

    Args:
        waves: (T,) float32 in [-1, 1], one channel.
        sample_rate: in Hz.
        kbps: wanted, in kbit/s.
        steps: of the bisection.
    """
    rate = sample_rate if sample_rate in OPUS_RATES else OPUS_RATES[-1]
    sources = [resample(wave, sample_rate, rate) for wave in waves]
    seconds = sum(len(wave) for wave in waves) / sample_rate

    def files(quality: float) -> list[bytes]:
        return [_write_opus(source, rate, 1 - quality) for source in sources]

    def measured(found: list[bytes]) -> float:
        return sum(sum(ogg_packets(file)[2:]) for file in found) * 8 / seconds / 1000

    # Quality is 1 - compression level; rates grow with it, near enough for a bisection.
    candidates = {quality: files(quality) for quality in (0.0, 1.0)}
    low, high = 0.0, 1.0
    for _ in range(steps):
        middle = (low + high) / 2
        candidates[middle] = files(middle)
        low, high = (middle, high) if measured(candidates[middle]) < kbps else (low, middle)
    quality = min(candidates, key=lambda candidate: abs(measured(candidates[candidate]) - kbps))
    best = candidates[quality]
    decoded = [resample(_read(file), rate, sample_rate) for file in best]
    return Coded(
        [_of_length(copy, len(wave)) for copy, wave in zip(decoded, waves, strict=True)],
        measured(best),
        sum(map(len, best)) * 8 / seconds / 1000,
        f"libopus through {_libsndfile()}, variable rate, {rate} Hz, compression level {1 - quality:.4f} for all: "
        "the setting whose packets come nearest to the wanted rate; packets counted, without Ogg container and headers",
    )


def ogg_packets(data: bytes) -> list[int]:
    """Sizes of the packets of an Ogg file with one stream, in bytes; of Opus the first two are headers.

    Source: RFC 3533 (https://www.rfc-editor.org/rfc/rfc3533), section 6.
    """
    sizes, position, size = [], 0, 0
    while position < len(data):
        if data[position : position + 4] != b"OggS":
            raise ValueError(f"no Ogg page at byte {position}")
        lacing = data[position + 27 : position + 27 + data[position + 26]]
        for segment in lacing:
            size += segment
            if segment < 255:
                sizes.append(size)
                size = 0
        position += 27 + len(lacing) + sum(lacing)
    return sizes


def speech_codecs(waves: Sequence[Tensor], sample_rate: int, kbps: float) -> dict[str, Coded | str]:
    """Codec2 and Speex at the mode nearest to a rate, where their programs are on the PATH; else, what is missing.

    Args:
        waves: (T,) float32 in [-1, 1], one channel.
        sample_rate: in Hz.
        kbps: wanted, in kbit/s.
    """
    wanted: dict[str, tuple[tuple[str, str], Callable[..., Coded]]] = {
        "codec2": (("c2enc", "c2dec"), codec2),
        "speex": (("speexenc", "speexdec"), speex),
    }
    found: dict[str, Coded | str] = {}
    for name, (programs, code) in wanted.items():
        absent = [program for program in programs if shutil.which(program) is None]
        found[name] = (
            f"not measured: {' and '.join(absent)} not on the PATH (Debian: apt install {name})"
            if absent
            else code(waves, sample_rate, kbps)
        )
    return found


def codec2(waves: Sequence[Tensor], sample_rate: int, kbps: float) -> Coded:
    """Codec2 at the mode nearest to a rate; it codes speech of 8 kHz, and has no more than 3.2 kbit/s."""
    mode = str(min(CODEC2_MODES, key=lambda bits: abs(bits / 1000 - kbps)))

    def code(wave: Tensor, folder: Path) -> tuple[Tensor, int]:
        (folder / "in").write_bytes(_pcm(wave))
        subprocess.run(["c2enc", mode, folder / "in", folder / "bits"], check=True, capture_output=True)
        subprocess.run(["c2dec", mode, folder / "bits", folder / "out"], check=True, capture_output=True)
        return _from_pcm((folder / "out").read_bytes()), (folder / "bits").stat().st_size

    return Coded(*_coded(waves, sample_rate, 8000, code), None, f"c2enc {mode}, 8000 Hz, aligned by cross-correlation")


def speex(waves: Sequence[Tensor], sample_rate: int, kbps: float) -> Coded:
    """Speex, wideband from 16 kHz on, at the quality whose packets come nearest to a rate."""
    rate = 16000 if sample_rate >= 16000 else 8000

    def quality(number: int) -> tuple[list[Tensor], float]:
        def code(wave: Tensor, folder: Path) -> tuple[Tensor, int]:
            soundfile.write(folder / "in.wav", wave.numpy(), rate, subtype="PCM_16")
            encode = ["speexenc", "--quality", str(number), "--vbr", f"{folder}/in.wav", f"{folder}/bits.spx"]
            for command in (encode, ["speexdec", "--no-enh", f"{folder}/bits.spx", f"{folder}/out.wav"]):
                subprocess.run(command, check=True, capture_output=True)
            samples, _ = soundfile.read(folder / "out.wav", dtype="float32")
            return torch.from_numpy(samples), sum(ogg_packets((folder / "bits.spx").read_bytes())[2:])

        return _coded(waves, sample_rate, rate, code)

    numbers = {number: quality(number) for number in SPEEX_QUALITIES}
    best = min(numbers, key=lambda number: abs(numbers[number][1] - kbps))
    protocol = f"speexenc --vbr --quality {best}, {rate} Hz, aligned by cross-correlation; packets counted"
    return Coded(*numbers[best], None, protocol)


def _coded(
    waves: Sequence[Tensor], sample_rate: int, rate: int, code: Callable[[Tensor, Path], tuple[Tensor, int]]
) -> tuple[list[Tensor], float]:
    """Copies aligned with their originals, and kbit/s."""
    copies, total = [], 0
    for wave in waves:
        with tempfile.TemporaryDirectory() as folder:
            source = resample(wave, sample_rate, rate).clamp(-1, 1)
            decoded, size = code(source, Path(folder))
        total += size
        copies.append(_of_length(resample(aligned(decoded, source), rate, sample_rate), len(wave)))
    seconds = sum(len(wave) for wave in waves) / sample_rate
    return copies, total * 8 / seconds / 1000


def lag(copy: Tensor, original: Tensor) -> int:
    """By how many samples `copy` comes after `original`, from the peak of their cross-correlation."""
    size = 2 ** math.ceil(math.log2(len(copy) + len(original)))
    correlation = torch.fft.irfft(torch.fft.rfft(copy.double(), size) * torch.fft.rfft(original.double(), size).conj())
    peak = int(correlation.argmax())
    return peak - size if peak > size // 2 else peak


def aligned(copy: Tensor, original: Tensor) -> Tensor:
    """`copy` without its delay, as long as `original`."""
    delay = lag(copy, original)
    return _of_length(copy[delay:] if delay >= 0 else F.pad(copy, (-delay, 0)), len(original))


def _of_length(wave: Tensor, length: int) -> Tensor:
    return F.pad(wave[:length], (0, max(0, length - len(wave))))


def _write_opus(wave: Tensor, rate: int, compression: float) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(
        buffer, wave.clamp(-1, 1).numpy(), rate, format="OGG", subtype="OPUS", compression_level=compression
    )
    return buffer.getvalue()


def _read(file: bytes) -> Tensor:
    samples, _ = soundfile.read(io.BytesIO(file), dtype="float32")
    return torch.from_numpy(samples)


def _libsndfile() -> str:
    return f"libsndfile {soundfile.__libsndfile_version__}"


def _pcm(wave: Tensor) -> bytes:
    return (wave.clamp(-1, 1) * 32767).round().short().numpy().tobytes()


def _from_pcm(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.int16).float() / 32768

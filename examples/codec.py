"""A trained audio tokenizer as a codec: a recording to tokens, tokens to a recording, and both as the sound arrives.

    python examples/codec.py encode runs/quickstart-audio/tokenizer speech.flac speech.safetensors
    python examples/codec.py decode runs/quickstart-audio/tokenizer speech.safetensors speech.wav --levels 4
    python examples/codec.py stream runs/quickstart-audio/tokenizer speech.flac speech.wav  # causal models

Any format and sample rate that libsndfile reads. Recordings are read, encoded, decoded and written block by block: an
hour takes no more memory than ten seconds. `stream` plays the part of a live connection with chunks of `--chunk-ms`,
and says what the delay would be.
"""

import argparse
import io
import json
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from the checkout, installed or not

import numpy
import soundfile
import soxr
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from vqkit import AudioTokenizer
from vqkit.saving.files import whole, write_whole

BLOCK_SECONDS = 10


def main() -> None:
    """Read the command line, load the codec, and do what is asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("encode", "decode", "stream"))
    parser.add_argument("tokenizer", type=Path, help="folder of a saved AudioTokenizer")
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--levels", type=int, help="decode the first levels of residual stages only")
    parser.add_argument("--chunk-ms", type=positive, default=40.0, help="length of the chunks of `stream`")
    arguments = parser.parse_args()
    codec = AudioTokenizer.from_pretrained(arguments.tokenizer)
    check_levels(codec, arguments.levels)
    if arguments.action == "encode":
        encode(codec, arguments.source, arguments.target)
    elif arguments.action == "decode":
        decode(codec, arguments.source, arguments.target, arguments.levels)
    else:
        stream(codec, arguments.source, arguments.target, arguments.levels, arguments.chunk_ms / 1000)


def positive(text: str) -> float:
    """A number above 0."""
    if not float(text) > 0:
        raise argparse.ArgumentTypeError(f"{text}: expected a length above 0")
    return float(text)


def check_levels(codec: AudioTokenizer, levels: int | None) -> None:
    """Stop unless there are so many levels: frames have no axis of levels where one codebook is all."""
    most = codec.quantizer.num_codebooks if codec.quantizer.level_axis else 0
    if levels is not None and not 1 <= levels <= most:
        raise SystemExit(
            f"--levels {levels}: expected 1 to {most}"
            if most
            else "--levels: this codec has one codebook and no levels"
        )


def encode(codec: AudioTokenizer, source: Path, target: Path) -> None:
    """A recording to a file of indices (frames[, levels]), as small as the codebooks allow."""
    samples = 0

    def counted() -> Iterator[Tensor]:
        nonlocal samples
        for block in read_blocks(source, codec, BLOCK_SECONDS):
            samples += block.shape[-1]
            yield block

    indices = torch.cat(list(codec.encode_blocks(counted())), dim=1)[0]
    small = indices.to(torch.uint16 if codec.quantizer.codebook_size <= 2**16 else torch.int32)
    facts = {"samples": samples, "sample_rate": codec.sample_rate, "frame_rate": codec.frame_rate}
    write_whole(target, save({"indices": small}, {name: json.dumps(value) for name, value in facts.items()}))
    print(
        f"{source}: {samples / codec.sample_rate:.2f} s, {tuple(indices.shape)} indices at {codec.frame_rate:g} "
        f"frames/s, {codec.kbps:g} kbit/s -> {target}"
    )


def decode(codec: AudioTokenizer, source: Path, target: Path, levels: int | None) -> None:
    """A file of indices to a recording."""
    with safe_open(source, framework="pt") as file:
        indices, samples = file.get_tensor("indices").to(torch.int64), json.loads(file.metadata()["samples"])
    kept = indices if levels is None else indices[..., :levels]
    write(target, codec.decode_blocks(kept[None].split(256, dim=1)), codec, samples)
    print(f"{source}: {samples / codec.sample_rate:.2f} s -> {target}")


def stream(codec: AudioTokenizer, source: Path, target: Path, levels: int | None, chunk_seconds: float) -> None:
    """A recording through encoder and decoder as it arrives, and how long that took."""
    busy, samples = 0.0, 0

    def received() -> Iterator[Tensor]:
        nonlocal busy, samples
        with codec.streaming():
            for chunk in (*read_blocks(source, codec, chunk_seconds), None):
                start = time.perf_counter()
                indices = codec.flush() if chunk is None else codec.encode(chunk)
                sent = indices if levels is None else indices[..., :levels]
                sound = codec.decode(sent) if sent.shape[1] else None
                busy += time.perf_counter() - start
                samples += 0 if chunk is None else chunk.shape[-1]
                if sound is not None:
                    yield sound

    write(target, received(), codec, None)
    seconds = samples / codec.sample_rate
    print(
        f"{source}: {seconds:.2f} s in chunks of {1000 * chunk_seconds:g} ms -> {target}; algorithmic delay "
        f"{1000 * codec.latency:g} ms, {busy:.2f} s of computing: {busy / seconds:.3f} of real time on "
        f"{torch.get_num_threads()} threads"
    )


def read_blocks(path: Path, codec: AudioTokenizer, seconds: float) -> Iterator[Tensor]:
    """A recording as pieces (1, C, samples) at the codec's sample rate and number of channels."""
    with soundfile.SoundFile(path) as file:
        resampler = soxr.ResampleStream(file.samplerate, codec.sample_rate, file.channels, quality="VHQ")
        length = max(1, round(seconds * file.samplerate))
        found = False
        while True:
            block = file.read(length, dtype="float32", always_2d=True)
            done = len(block) < length
            piece = block if file.samplerate == codec.sample_rate else resampler.resample_chunk(block, last=done)
            if len(piece):
                found = True
                yield as_channels(piece, codec.channels)
            if done and not found:
                raise SystemExit(
                    f"{path}: {file.frames} samples at {file.samplerate} Hz, too short for {codec.sample_rate} Hz"
                )
            if done:
                return


def as_channels(samples: numpy.ndarray, channels: int) -> Tensor:
    """(T, C) to (1, channels, T): mono is the mean, and a mono recording is repeated."""
    wave = torch.from_numpy(samples).T[None]
    if wave.shape[1] == channels:
        return wave.contiguous()
    return wave.mean(1, keepdim=True).expand(-1, channels, -1).contiguous()


def write(target: Path, pieces: Iterable[Tensor], codec: AudioTokenizer, samples: int | None) -> None:
    """Pieces (1, C, T) to a file of the target's format, cut to `samples`, whole or not at all."""
    left = samples
    with whole(target) as partial, Place(partial, target) as place:
        with soundfile.SoundFile(place, "w", codec.sample_rate, codec.channels) as file:
            for piece in pieces:
                kept = piece if left is None else piece[..., :left]
                left = None if left is None else left - kept.shape[-1]
                file.write(kept[0].clamp(-1, 1).T.numpy())
                place.check()
        place.check()


class Place(io.FileIO):
    """A file for libsndfile, which says "System error" of a full disk, or nothing at the end of a FLAC or an MP3."""

    def __init__(self, path: Path, target: Path) -> None:
        super().__init__(path, "w+")
        self.name = str(target)  # by which the format is chosen
        self.refusal: OSError | None = None

    def write(self, data: bytes) -> int:
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


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")

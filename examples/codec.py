"""A trained audio tokenizer as a codec: a recording to tokens, tokens to a recording, and both as the sound arrives.

    python examples/codec.py encode runs/quickstart-audio/tokenizer speech.flac speech.safetensors
    python examples/codec.py decode runs/quickstart-audio/tokenizer speech.safetensors speech.wav --levels 4
    python examples/codec.py stream runs/quickstart-audio/tokenizer speech.flac speech.wav  # causal models

Any format and sample rate that libsndfile reads; m4a, mp4 and the like where torchcodec is installed, which holds them
in memory. Other recordings are read, encoded, decoded and written block by block: an hour takes no more memory than ten
seconds. Several channels become one by `--downmix`, and a warning says where most is lost by that. `stream` plays the
part of a live connection with chunks of `--chunk-ms`, and says what the delay would be.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from the checkout, installed or not

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from vqkit import AudioTokenizer
from vqkit.indices import check_indices
from vqkit.media.recordings import DOWNMIXES, Recording, check_writable, write_pieces
from vqkit.saving.files import named, write_whole


def main() -> None:
    """Do what is asked; a mistake ends in a line."""
    try:
        run()
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


def run() -> None:
    """Read the command line, load the codec, and do what is asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("encode", "decode", "stream"))
    parser.add_argument("tokenizer", type=Path, help="folder of a saved AudioTokenizer")
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--levels", type=int, help="decode the first levels of residual stages only")
    parser.add_argument("--chunk-ms", type=positive, default=40.0, help="length of the chunks of `stream`")
    parser.add_argument("--downmix", choices=DOWNMIXES, default="mean", help="how several channels become one")
    arguments = parser.parse_args()
    check_target(arguments.target, sound=arguments.action != "encode")
    codec = AudioTokenizer.from_pretrained(arguments.tokenizer)
    check_levels(codec, arguments.levels)
    if arguments.action == "encode":
        encode(codec, recording(arguments.source, codec, arguments.downmix), arguments.target)
    elif arguments.action == "decode":
        decode(codec, arguments.source, arguments.target, arguments.levels)
    else:
        source = recording(arguments.source, codec, arguments.downmix)
        stream(codec, source, arguments.target, arguments.levels, arguments.chunk_ms / 1000)


def positive(text: str) -> float:
    """A number above 0."""
    if not float(text) > 0:
        raise argparse.ArgumentTypeError(f"{text}: expected a length above 0")
    return float(text)


def check_levels(codec: AudioTokenizer, levels: int | None) -> None:
    """Stop unless there are so many levels: frames have no axis of levels where one codebook is all."""
    if not codec.quantizer.index_per_position:
        raise SystemExit(
            f"this codec has levels of {codec.level_rates} indices a second, and the files of this example hold frames "
            "of one rate: write token shards (docs/tokens.md)"
        )
    most = codec.quantizer.num_codebooks if codec.quantizer.level_axis else 0
    if levels is not None and not 1 <= levels <= most:
        raise SystemExit(
            f"--levels {levels}: expected 1 to {most}"
            if most
            else "--levels: this codec has one codebook and no levels"
        )


def check_target(target: Path, *, sound: bool) -> None:
    """Stop unless a file can be written there, before anything is computed."""
    if not target.parent.is_dir() or target.is_dir():
        raise ValueError(f"{target}: expected a file in a folder that is there")
    if sound:
        check_writable(target)


def recording(path: Path, codec: AudioTokenizer, downmix: str) -> Recording:
    """A file as the codec takes it, and a warning where most of it is lost."""
    found = Recording(path, sample_rate=codec.sample_rate, channels=codec.channels, downmix=DOWNMIXES[downmix])
    if found.lost is not None:
        print(f"warning: {path}: {found.lost}; try --downmix loudest", file=sys.stderr)
    return found


def encode(codec: AudioTokenizer, source: Recording, target: Path) -> None:
    """A recording to a file of indices (frames[, levels]), as small as the codebooks allow."""
    samples = 0

    def counted() -> Iterator[Tensor]:
        nonlocal samples
        for block in source.pieces():
            samples += block.shape[-1]
            yield block

    indices = torch.cat(list(codec.encode_blocks(counted())), dim=1)[0]
    small = indices.to(torch.uint16 if codec.quantizer.codebook_size <= 2**16 else torch.int32)
    facts = {"samples": samples, "sample_rate": codec.sample_rate, "frame_rate": codec.frame_rate}
    write_whole(target, save({"indices": small}, {name: json.dumps(value) for name, value in facts.items()}))
    print(
        f"{source.path}: {samples / codec.sample_rate:.2f} s, {tuple(indices.shape)} indices at {codec.frame_rate:g} "
        f"frames/s, {codec.kbps:g} kbit/s -> {target}"
    )


def decode(codec: AudioTokenizer, source: Path, target: Path, levels: int | None) -> None:
    """A file of indices to a recording."""
    indices, samples = read_tokens(source, codec)
    kept = indices if levels is None else indices[..., :levels]
    sound = codec.decode_blocks(kept[None].split(256, dim=1))
    write_pieces(target, sound, sample_rate=codec.sample_rate, channels=codec.channels, samples=samples)
    print(f"{source}: {samples / codec.sample_rate:.2f} s -> {target}")


def read_tokens(source: Path, codec: AudioTokenizer) -> tuple[Tensor, int]:
    """The indices of a file, int64 (frames[, levels]), and the samples that they stand for.

    Raises:
        ValueError: the file is damaged, or another codec's.
    """
    if not source.is_file():
        found = "not a plain file" if source.exists() else "there is no such file"
        raise ValueError(f"{source}: {found}; expected one that `encode` wrote")
    quantizer = codec.quantizer
    with named(source), safe_open(source, framework="pt") as file:
        part, facts = file.get_slice("indices"), file.metadata() or {}
        shape, levels = part.get_shape(), [quantizer.num_codebooks] if quantizer.level_axis else []
        if shape[1:] != levels or not shape or shape[0] < 1 or part.get_dtype() not in ("U16", "I32"):
            raise ValueError(
                f"'indices' is {part.get_dtype()} {shape}: expected U16 or I32 {['frames', *levels]}; encode again "
                "with this tokenizer"
            )
        samples, rate = (json.loads(facts.get(name, "null")) for name in ("samples", "sample_rate"))
        most = shape[0] * codec.downsampling_factor
        if type(samples) is not int or not 0 < samples <= most or rate != codec.sample_rate:
            raise ValueError(
                f"has samples={samples}, sample_rate={rate}: expected 1 to {most} at {codec.sample_rate} Hz; encode "
                "again with this tokenizer"
            )
        indices = file.get_tensor("indices").to(torch.int64)
        check_indices(indices, quantizer.codebook_sizes, level_axis=quantizer.level_axis)
        if bool((indices < 0).any()):
            raise ValueError("has negative indices; encode again with this tokenizer")
        return indices, samples


def stream(codec: AudioTokenizer, source: Recording, target: Path, levels: int | None, chunk_seconds: float) -> None:
    """A recording through encoder and decoder as it arrives, and how long that took."""
    busy, samples = 0.0, 0

    def received() -> Iterator[Tensor]:
        nonlocal busy, samples
        with codec.streaming():
            for chunk in itertools.chain(source.pieces(chunk_seconds), [None]):
                start = time.perf_counter()
                indices = codec.flush() if chunk is None else codec.encode(chunk)
                sent = indices if levels is None else indices[..., :levels]
                sound = codec.decode(sent) if sent.shape[1] else None
                busy += time.perf_counter() - start
                samples += 0 if chunk is None else chunk.shape[-1]
                if sound is not None:
                    yield sound

    write_pieces(target, received(), sample_rate=codec.sample_rate, channels=codec.channels)
    seconds = samples / codec.sample_rate
    print(
        f"{source.path}: {seconds:.2f} s in chunks of {1000 * chunk_seconds:g} ms -> {target}; algorithmic delay "
        f"{1000 * codec.latency:g} ms, {busy:.2f} s of computing: {busy / seconds:.3f} of real time on "
        f"{torch.get_num_threads()} threads"
    )


if __name__ == "__main__":
    main()

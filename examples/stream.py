"""A causal codec on a live connection: a recording is encoded, sent and decoded chunk by chunk, as the sound arrives.

    python examples/stream.py runs/live/tokenizer speech.flac speech.wav --levels 4

It says what the delay would be, and how much computing it took. Files are encoded and decoded by `python -m vqkit`.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from the checkout, installed or not

import torch
from torch import Tensor

from vqkit import AudioTokenizer
from vqkit.media.channels import DOWNMIXES
from vqkit.media.recordings import Recording, check_writable, write_pieces
from vqkit.quantizers.rows import first_levels_of


def main() -> None:
    """Do what is asked; a mistake ends in a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path, help="folder of a saved AudioTokenizer")
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--levels", type=int, help="send the first levels of residual stages only")
    parser.add_argument("--chunk-ms", type=positive, default=40.0, help="length of the chunks")
    parser.add_argument("--downmix", choices=DOWNMIXES, default="mean", help="how several channels become one")
    arguments = parser.parse_args()
    try:
        stream(arguments)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


def positive(text: str) -> float:
    """A number above 0."""
    if not float(text) > 0:
        raise argparse.ArgumentTypeError(f"{text}: expected a length above 0")
    return float(text)


def stream(arguments: argparse.Namespace) -> None:
    """A recording through encoder and decoder as it arrives, and how long that took."""
    check_writable(arguments.target)
    if arguments.target.exists() and arguments.target.samefile(arguments.source):
        raise ValueError(f"{arguments.target}: source and target are one file; give another target")
    codec = AudioTokenizer.from_pretrained(arguments.tokenizer)
    source = Recording(
        arguments.source,
        sample_rate=codec.sample_rate,
        channels=codec.channels,
        downmix=DOWNMIXES[arguments.downmix],
    )
    busy, samples = 0.0, 0

    def received() -> Iterator[Tensor]:
        nonlocal busy, samples
        with codec.streaming():
            for chunk in itertools.chain(source.pieces(arguments.chunk_ms / 1000), [None]):
                start = time.perf_counter()
                indices = codec.flush() if chunk is None else codec.encode(chunk)
                sent = first_levels_of(codec.quantizer, indices, arguments.levels, name="--levels ")
                sound = codec.decode(sent) if sent.shape[1] else None
                busy += time.perf_counter() - start
                samples += 0 if chunk is None else chunk.shape[-1]
                if sound is not None:
                    yield sound

    write_pieces(arguments.target, received(), sample_rate=codec.sample_rate, channels=codec.channels)
    seconds = samples / codec.sample_rate
    print(
        f"{source.path}: {seconds:.2f} s in chunks of {arguments.chunk_ms:g} ms -> {arguments.target}; algorithmic "
        f"delay {1000 * codec.latency:g} ms, {busy:.2f} s of computing: {busy / seconds:.3f} of real time on "
        f"{torch.get_num_threads()} threads"
    )


if __name__ == "__main__":
    main()

"""How fast the codecs of configs/audio run, at once and as the sound arrives: real-time factors and delays.

    python benchmarks/codec.py --threads 1 --output benchmarks/results/codec.md

Weights are random, which changes no time. Each row is a config; `at once` is one call on `--seconds` of sound,
`stream` is chunk after chunk of `--chunk-ms` through encoder, quantizer and decoder, and the worst chunk is what a live
connection has to wait for beyond the algorithmic delay. Rounds are interleaved, medians are given.
"""

import argparse
import os
import statistics
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from benchmarks.arguments import parse_positive
from benchmarks.machine import circumstances, write
from benchmarks.paired import one_round, timed
from trainers.run.bases import read_config
from vqkit import AudioTokenizer

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs/audio"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="*", default=sorted(path.stem for path in CONFIGS.glob("*.yaml")))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=parse_positive, default=1)
    parser.add_argument("--rounds", type=parse_positive, default=5)
    parser.add_argument("--seconds", type=parse_positive, default=4, help="length of the sound")
    parser.add_argument("--chunk-ms", type=float, default=80.0)
    parser.add_argument("--output", type=Path, help="Markdown file of the table; printed either way")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    load = os.getloadavg()[0]
    codecs = {name: load_codec(CONFIGS / f"{name}.yaml").to(arguments.device) for name in arguments.configs}
    rows = [measure(name, codec, arguments) for name, codec in codecs.items()]
    command = (
        f"python benchmarks/codec.py --configs {' '.join(arguments.configs)} --device {arguments.device} "
        f"--threads {arguments.threads} --rounds {arguments.rounds} --seconds {arguments.seconds} "
        f"--chunk-ms {arguments.chunk_ms:g}"
    )
    head = ["# Codecs: real-time factors and delays", ""]
    head += circumstances(command, arguments.device, arguments.threads, load)
    text = "\n".join([*head, "", *table(rows, arguments.chunk_ms), ""])
    print(text)
    if arguments.output:
        write(arguments.output, text)


def load_codec(path: Path) -> AudioTokenizer:
    """The tokenizer of a config, with random weights, in eval mode."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(AudioTokenizer, "tokenizer")
    wanted = read_config(path)["model"]["init_args"]["tokenizer"]
    torch.manual_seed(0)
    return parser.instantiate(parser.parse_object({"tokenizer": wanted})).tokenizer.eval()


def measure(name: str, codec: AudioTokenizer, arguments: argparse.Namespace) -> dict[str, object]:
    """One row: sizes, delay, and seconds of computing for a second of sound."""
    wave = 0.1 * torch.randn(1, codec.channels, arguments.seconds * codec.sample_rate, device=arguments.device)
    indices = codec.encode(wave)
    sides = {"encode": partial(codec.encode, wave), "decode": partial(codec.decode, indices)}
    for call in sides.values():
        call()
    rounds = [
        one_round({side: partial(timed, call) for side, call in sides.items()}, number)
        for number in range(arguments.rounds)
    ]
    row: dict[str, object] = {
        "config": name,
        "parameters": sum(parameter.numel() for parameter in codec.parameters()),
        "kbps": codec.kbps,
        "delay": codec.latency,
        **{side: statistics.median(times[side] for times in rounds) / arguments.seconds for side in sides},
    }
    if codec.causal:
        chunks = [stream(codec, wave, arguments.chunk_ms) for _ in range(arguments.rounds)]
        row["stream"] = statistics.median(sum(times) for times in chunks) / arguments.seconds
        row["worst"] = statistics.median(max(times[1:] or times) for times in chunks)
    return row


def stream(codec: AudioTokenizer, wave: Tensor, chunk_ms: float) -> list[float]:
    """Seconds that each chunk took through encoder, quantizer and decoder."""
    length = round(chunk_ms * codec.sample_rate / 1000)

    def through(chunk: Tensor) -> None:
        indices = codec.encode(chunk)
        if indices.shape[1]:
            codec.decode(indices)

    with codec.streaming():
        return [timed(partial(through, chunk)) for chunk in wave.split(length, dim=-1)]


def table(rows: list[dict[str, object]], chunk_ms: float) -> list[str]:
    """The rows as Markdown."""
    lines = [
        "Computing time for a second of sound (below 1 is faster than real time); the worst chunk of the stream in ms.",
        "",
        "| config | parameters | kbit/s | algorithmic delay | encode | decode | stream | worst chunk of "
        f"{chunk_ms:g} ms |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        delay = "unbounded" if row["delay"] is None else f"{1000 * row['delay']:.1f} ms"
        streamed = f"{row['stream']:.3f} | {1000 * row['worst']:.1f} ms" if "stream" in row else "not causal | -"
        lines.append(
            f"| {row['config']} | {row['parameters'] / 1e6:.2f} M | {row['kbps']:.2f} | {delay} | {row['encode']:.3f} "
            f"| {row['decode']:.3f} | {streamed} |"
        )
    return lines


if __name__ == "__main__":
    main()

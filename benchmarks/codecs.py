"""Published codecs beside transformers' own classes: time and memory of encoding, decoding, and of a step of a stream.

    pip install -e '.[bench,teachers]'
    python benchmarks/codecs.py --output benchmarks/results/codecs.md

A model of transformers gets random weights at its published sizes, and `vqkit.convert` reads them from its file: both
sides compute the same, of which *same codes* and *difference* are the check. They take turns in one process, and the
order alternates; memory is of one call, each in a process of its own. A stream is of pieces of one frame. *ms* are of
processors, of all threads together, so that what else runs on the machine counts little. The table is written after
each row.
"""

import argparse
import itertools
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import transformers
from torch import Tensor

import vqkit
from benchmarks.arguments import parse_positive
from benchmarks.machine import circumstances, number, table_row, version, write
from benchmarks.memory import MIB, in_own_process, peak_growth, return_freed_memory
from benchmarks.paired import one_round, ratio, worked
from vqkit import AudioTokenizer

WARM_STEPS = 3
"""Of a stream, before those that count."""
HEADER = (
    "codec", "call", "batch", "transformers ms", "vqkit ms", "vqkit / transformers", "rounds from to",
    "transformers MiB", "vqkit MiB", "same codes", "difference",
)  # fmt: skip


class Published(NamedTuple):
    """A model of transformers, and how it is called.

    Attributes:
        model: its class.
        config: its sizes.
        encode: (model, waves) to codes (B, levels, frames).
        decode: (model, codes) to waves (B, C, T).
        start: of a stream: a model to a function of the next piece; None where the class does not stream.
    """

    model: type[Any]
    config: Any
    encode: Callable[[Any, Tensor], Tensor]
    decode: Callable[[Any, Tensor], Tensor]
    start: Callable[[Any], Callable[[Tensor], Tensor]] | None = None


def mimi_stream(model: Any) -> Callable[[Tensor], Tensor]:
    """Encodes piece after piece; transformers has no stream of the decoder's convolutions."""
    kept: dict[str, Any] = {"encoder_cache": None, "padding_cache": None}

    def step(piece: Tensor) -> Tensor:
        made = model.encode(piece, use_streaming=True, **kept)
        kept.update({name: getattr(made, name) for name in kept})
        return made.audio_codes

    return step


CODECS = {
    "DAC 16 kHz": Published(
        transformers.DacModel,
        transformers.DacConfig(
            downsampling_ratios=[2, 4, 5, 8], upsampling_ratios=[8, 5, 4, 2], n_codebooks=12, sampling_rate=16000
        ),
        lambda model, waves: model.encode(waves).audio_codes,
        lambda model, codes: model.decode(audio_codes=codes).audio_values.unsqueeze(1),
    ),
    "EnCodec 24 kHz": Published(
        transformers.EncodecModel,
        transformers.EncodecConfig(),
        lambda model, waves: model.encode(waves, bandwidth=24.0).audio_codes[0],
        lambda model, codes: model.decode(codes[None], [None]).audio_values,
    ),
    "Mimi": Published(
        transformers.MimiModel,
        transformers.MimiConfig(),
        lambda model, waves: model.encode(waves).audio_codes,
        lambda model, codes: model.decode(codes).audio_values,
        mimi_stream,
    ),
}


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codecs", nargs="*", default=list(CODECS), choices=list(CODECS))
    parser.add_argument("--seconds", type=parse_positive, default=10, help="length of the sound")
    parser.add_argument("--batches", nargs="*", type=parse_positive, default=[1, 8])
    parser.add_argument("--rounds", type=parse_positive, default=5)
    parser.add_argument("--threads", type=parse_positive, default=1)
    parser.add_argument("--circumstances", default="", help="what the head should say of the machine")
    parser.add_argument("--output", type=Path, help="Markdown file of the table; printed either way")
    arguments = parser.parse_args(words)
    torch.set_num_threads(arguments.threads)
    head = description(arguments)
    print(head)
    rows = []
    for name in arguments.codecs:
        for cells in measure(name, arguments):
            print(table_row(cells), flush=True)
            rows.append(table_row(cells))
            if arguments.output:
                write(arguments.output, "\n".join([head, *rows, ""]))


def description(arguments: argparse.Namespace) -> str:
    """What stands above the rows."""
    command = (
        f"python benchmarks/codecs.py --codecs {' '.join(map(repr, arguments.codecs))} --seconds {arguments.seconds} "
        f"--batches {' '.join(map(str, arguments.batches))} --rounds {arguments.rounds} --threads {arguments.threads}"
    )
    versions = [f"transformers {version('transformers')}"]
    told = circumstances(command, "cpu", arguments.threads, os.getloadavg()[0], versions)
    told += [f"- circumstances: {arguments.circumstances}"] if arguments.circumstances else []
    header = [table_row(HEADER), table_row(["---"] * 2 + ["---:"] * (len(HEADER) - 2))]
    return "\n".join(["# Codecs beside transformers", "", *told, "", *header])


def measure(name: str, arguments: argparse.Namespace) -> Iterator[list[str]]:
    """The rows of a codec, one after another."""
    with tempfile.TemporaryDirectory() as made:
        folders = build(CODECS[name], Path(made))
        sides = [load(name, side, folder) for side, folder in enumerate(folders)]
        calls = [("encode", batch) for batch in arguments.batches] + [("decode", batch) for batch in arguments.batches]
        calls += [("stream", 1)] if CODECS[name].start else []
        for call, batch in calls:
            yield row(name, call, batch, sides, folders, arguments)


def build(codec: Published, folder: Path) -> list[Path]:
    """Folders of the saved models: transformers' with random weights, and what `vqkit.convert` makes of it."""
    torch.manual_seed(0)
    model = codec.model(codec.config)
    with torch.no_grad():
        for key, buffer in model.named_buffers():
            if key.endswith(("embed", "embed_avg", "embed_sum")):  # which start at zero
                buffer.normal_()
    model.save_pretrained(folder / "transformers")
    vqkit.convert(folder / "transformers", folder / "vqkit")
    return [folder / "transformers", folder / "vqkit"]


def load(name: str, side: int, folder: Path) -> Any:
    """The saved model: transformers' for side 0, ours for side 1."""
    found = AudioTokenizer.from_pretrained(folder) if side else CODECS[name].model.from_pretrained(folder)
    return found.eval()


def prepared(name: str, side: int, model: Any, call: str, waves: Tensor) -> Callable[[], Tensor]:
    """A call of one side without arguments, to its codes (B, levels, frames) or waves (B, C, T)."""
    codec = CODECS[name]
    if call == "encode":
        return (lambda: model.encode(waves).mT) if side else partial(codec.encode, model, waves)
    codes = first_codes(codec.config, waves)
    return partial(model.decode, codes.mT) if side else partial(codec.decode, model, codes)


def first_codes(config: Any, waves: Tensor) -> Tensor:
    """Random codes (B, levels, frames) of as many frames as the sound has."""
    levels = next(getattr(config, key) for key in ("n_codebooks", "num_quantizers") if hasattr(config, key))
    frames = waves.shape[-1] // hop_of(config)
    generator = torch.Generator().manual_seed(1)
    return torch.randint(config.codebook_size, (len(waves), levels, frames), generator=generator)


def sound(config: Any, batch: int, seconds: int) -> Tensor:
    """Noise (B, 1, T) of whole frames: of a broken one transformers' Mimi fills the end of every layer by itself."""
    samples = seconds * config.sampling_rate // hop_of(config) * hop_of(config)
    return 0.1 * torch.randn(batch, 1, samples, generator=torch.Generator().manual_seed(2))


def hop_of(config: Any) -> int:
    """Samples of a frame."""
    return round(config.sampling_rate / config.frame_rate)


@torch.no_grad()
def row(
    name: str, call: str, batch: int, models: Sequence[Any], folders: Sequence[Path], arguments: argparse.Namespace
) -> list[str]:
    """Cells of `HEADER`."""
    waves = sound(CODECS[name].config, batch, arguments.seconds)
    if call == "stream":
        results = [partial(streamed, name, side, model, waves) for side, model in enumerate(models)]
        seconds = [partial(stream, name, side, model, waves) for side, model in enumerate(models)]
        memory = [None, None]
    else:
        results = [prepared(name, side, model, call, waves) for side, model in enumerate(models)]
        seconds = [partial(worked, result) for result in results]
        words = (call, batch, arguments.seconds, arguments.threads)
        memory = [in_own_process(measure_memory, name, side, folders[side], *words) for side in (0, 1)]
    theirs, ours = (result() for result in results)  # the first calls, which do not count
    rounds = [one_round({"theirs": seconds[0], "ours": seconds[1]}, turn) for turn in range(arguments.rounds)]
    times = {side: [made[side] for made in rounds] for side in ("theirs", "ours")}
    ratios = [made["ours"] / made["theirs"] for made in rounds]
    return [
        name,
        call,
        str(batch),
        *(number(statistics.median(values), 1000) for values in times.values()),
        f"{ratio(times['ours'], times['theirs']):.2f}",
        f"{min(ratios):.2f} {max(ratios):.2f}",
        *(number(value, 1 / MIB) for value in memory),
        *agreement(theirs, ours),
    ]


def agreement(theirs: Tensor, ours: Tensor) -> tuple[str, str]:
    """Share of equal codes, or the largest difference of waves, over what both have."""
    length = min(theirs.shape[-1], ours.shape[-1])
    theirs, ours = theirs[..., :length], ours[..., :length]
    if theirs.dtype == torch.int64:
        return f"{(theirs == ours).double().mean():.2%}", "-"
    return "-", f"{(theirs - ours).abs().max():.1e}"


def steps(name: str, side: int, model: Any, waves: Tensor) -> Callable[[Tensor], Tensor]:
    """What a stream does with the next piece."""
    start = CODECS[name].start
    assert start is not None
    return (lambda piece: model.encode(piece).mT) if side else start(model)


def pieces(name: str, waves: Tensor) -> tuple[Tensor, ...]:
    """The sound in pieces of one frame."""
    return waves.split(hop_of(CODECS[name].config), dim=-1)


def streamed(name: str, side: int, model: Any, waves: Tensor) -> Tensor:
    """Codes (B, levels, frames) of a whole stream."""
    with opened(side, model):
        step = steps(name, side, model, waves)
        return torch.cat([step(piece) for piece in pieces(name, waves)], dim=-1)


def stream(name: str, side: int, model: Any, waves: Tensor) -> float:
    """Seconds of a step, the median over a stream."""
    with opened(side, model):
        step = steps(name, side, model, waves)
        times = [worked(partial(step, piece)) for piece in pieces(name, waves)]
        return statistics.median(times[WARM_STEPS:] or times)


def opened(side: int, model: Any) -> Any:
    """The context of a stream."""
    return model.streaming() if side else torch.no_grad()


@torch.no_grad()
def measure_memory(name: str, side: int, folder: Path, call: str, batch: int, seconds: int, threads: int) -> int | None:
    """Bytes by which memory rises during the second call; to be run in a process of its own."""
    torch.set_num_threads(threads)
    return_freed_memory()
    model = load(name, side, folder)
    for length in itertools.chain([1], [seconds]):
        found = peak_growth(prepared(name, side, model, call, sound(CODECS[name].config, batch, length)), "cpu")
    return found


if __name__ == "__main__":
    main()

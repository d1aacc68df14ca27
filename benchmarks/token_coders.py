"""What each coder of `vqkit.bitstream` makes of the indices of pictures: bits a pixel; time and memory of one coder.

    python benchmarks/token_coders.py runs/quickstart/tokenizer --output benchmarks/results/token_coders.md

Each picture is a file of its own, and every byte counts. *nominal* is log2 K for each index, *zero-order* the entropy
of the picture's own indices, without the frequencies that a file has to hold. Times are of the processor, for the
largest picture, on one thread: the best of `--rounds`.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks.arguments import parse_positive
from benchmarks.machine import circumstances, write
from benchmarks.memory import in_own_process, peak_growth
from vqkit import Tokenizer
from vqkit.bitstream import CODERS, Context, TokenCodec
from vqkit.bitstream.mixing import ContextMixing
from vqkit.command_line.medium import Coded
from vqkit.command_line.pictures import Pictures
from vqkit.command_line.reports import amount
from vqkit.kernels import native
from vqkit.media.files import found_under

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = ("nominal", "zero-order", *CODERS)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path, help="folder of a saved tokenizer of pictures")
    parser.add_argument("--pictures", type=Path, default=ROOT / "assets/images/eval", help="folder of pictures")
    parser.add_argument("--rounds", type=parse_positive, default=3)
    parser.add_argument("--output", type=Path, help="Markdown file of the tables; printed either way")
    arguments = parser.parse_args(words)
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    tokenizer = Tokenizer.from_pretrained(arguments.tokenizer)
    codec, medium = TokenCodec.of(tokenizer), Pictures(tokenizer, batch_size=1)
    files = found_under(arguments.pictures, medium.suffixes).files
    if not files:
        parser.error(f"{arguments.pictures} has no pictures: expected a folder with some")
    pictures = {path.name: medium.encode([medium.load(path)])[0] for path in sorted(files)}
    bits = {name: bits_of_columns(codec, coded) for name, coded in pictures.items()}
    pixels = {name: amount(coded.extent) for name, coded in pictures.items()}
    largest = max((codec.split(coded.indices)[0][0] for coded in pictures.values()), key=Tensor.numel)
    context = Context(codec.sizes[0], whole=tuple(largest.shape), order=codec.order(0))
    folder = "/".join(arguments.tokenizer.parts[-3:])
    command = f"python benchmarks/token_coders.py {folder} --rounds {arguments.rounds}"
    head = ["# Coders of indices: bits a pixel", "", *circumstances(command, "cpu", 1, load), ""]
    text = "\n".join([*head, *rate_table(bits, pixels), "", *cost_table(largest, context, arguments.rounds), ""])
    print(text)
    if arguments.output:
        write(arguments.output, text)


def bits_of_columns(codec: TokenCodec, coded: Coded) -> list[float]:
    """Bits of a picture in each of `COLUMNS`, with the file's header in those of the coders."""
    packed = [codec.pack(coded.indices, extent=coded.extent, coder=name) for name in CODERS]
    for file in packed:
        if not torch.equal(codec.unpack(file.content).indices, coded.indices):
            raise RuntimeError(f"{', '.join(file.coders)} did not give the indices back")
    return [packed[0].nominal_bits, packed[0].zero_order_bits, *(8.0 * len(file.content) for file in packed)]


def rate_table(bits: dict[str, list[float]], pixels: dict[str, float]) -> list[str]:
    """Rows of bits a pixel as Markdown."""
    rates = {name: [value / pixels[name] for value in row] for name, row in bits.items()}
    rates["mean of the pictures"] = [sum(column) / len(rates) for column in zip(*rates.values(), strict=True)]
    rates["all pixels"] = [sum(column) / sum(pixels.values()) for column in zip(*bits.values(), strict=True)]
    lines = [f"| picture | {' | '.join(COLUMNS)} |", "|---" + "|---:" * len(COLUMNS) + "|"]
    return lines + [f"| {name} | {' | '.join(f'{rate:.4f}' for rate in row)} |" for name, row in rates.items()]


def cost_table(values: Tensor, context: Context, rounds: int) -> list[str]:
    """Time and memory of `ContextMixing`, in both forms, as Markdown."""
    lines = [
        f"`context mixing` of {values.numel():,} indices of {context.size:,} codes; memory: what a process grows by.",
        "",
        "| form | encode, indices/s | decode, indices/s | encode, MiB |",
        "|---|---:|---:|---:|",
    ]
    for form in ("compiled", "Python") if native.variants() else ("Python",):
        encode, decode = speeds(form == "compiled", values, context, rounds)
        growth = in_own_process(memory, form == "compiled", values.tolist(), context.size, _listed(context.order))
        grown = "unknown" if growth is None else f"{growth / 2**20:.1f}"
        lines.append(f"| {form} | {encode:,.0f} | {decode:,.0f} | {grown} |")
    return lines


def speeds(compiled: bool, values: Tensor, context: Context, rounds: int) -> list[float]:
    """Indices a second of the processor, written and read."""
    coder, shape = ContextMixing(), tuple(values.shape)
    with _form(compiled):
        written = coder.encode(values, context)
        calls = partial(coder.encode, values, context), partial(coder.decode, written, shape, context)
        return [values.numel() / min(processor_seconds(call) for _ in range(rounds)) for call in calls]


def processor_seconds(call: Callable[[], object]) -> float:
    """Of one call, whatever else the machine does."""
    start = time.process_time()
    call()
    return time.process_time() - start


def memory(compiled: bool, rows: list[list[int]], size: int, order: list[int] | None) -> int | None:
    """Bytes that this process grows by while it encodes, after a small call."""
    values, coder = torch.tensor(rows), ContextMixing()
    context = Context(size, whole=tuple(values.shape), order=None if order is None else torch.tensor(order))
    with _form(compiled):
        coder.encode(values[:1, :1], context)
        return peak_growth(partial(coder.encode, values, context), "cpu")


def _form(compiled: bool) -> AbstractContextManager[object]:
    return nullcontext() if compiled else patch.object(native, "variants", tuple)


def _listed(order: Tensor | None) -> list[int] | None:
    return None if order is None else order.tolist()


if __name__ == "__main__":
    main()

"""The commands: their arguments, and what each does."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from vqkit.bitstream.codec import Concealment, TokenCodec
from vqkit.bitstream.coders import CODERS
from vqkit.bitstream.concealment import CodebookMean, NearestNeighbour
from vqkit.bitstream.container import FINGERPRINT, MAGIC, inspect
from vqkit.command_line.jobs import ENDING, Batches, Job, Run, found, planned, read_file, reason
from vqkit.command_line.medium import Coded, Medium, check_prefixes, first_tokens
from vqkit.command_line.reports import FIGURES, Rate, description, is_whole, total
from vqkit.command_line.weights import are_weights, family_named, weights_description
from vqkit.conversion import Family, convert
from vqkit.quantizers.rows import first_levels_of
from vqkit.saving.files import write_whole
from vqkit.tokenizers.audio import AudioTokenizer
from vqkit.tokenizers.tokenizer import Tokenizer
from vqkit.tokens.names import escaped

CONCEALMENTS: dict[str, Callable[[Tokenizer], Concealment]] = {
    "nearest": lambda tokenizer: NearestNeighbour(),
    "mean": CodebookMean.of,
}
"""What fills the gaps of damaged files, by the words of the command."""

DOWNMIXES = ("mean", "left", "right", "loudest")
"""Words of `vqkit.media.channels.DOWNMIXES`, which needs numpy; `info` and `convert` do not."""

SHOWN = 3
"""Packets that are missing of which a line says where."""

EXAMPLES = """
  python -m vqkit encode --tokenizer runs/mine/tokenizer photos coded
  python -m vqkit decode --tokenizer runs/mine/tokenizer coded again
  python -m vqkit info coded/sea.vqk
  python -m vqkit rate --tokenizer runs/mine/tokenizer photos
  python -m vqkit draw --tokenizer runs/mine/tokenizer --code 731 photos code-731.png
  python -m vqkit convert vq_ds16_c2i.pt llamagen16
"""


def main(words: Sequence[str] | None = None) -> int:
    """Do what a command line asks for.

    Args:
        words: of the command line; None takes those of the process.

    Returns:
        The status: 0, 1 where a file could not be used, 2 where nothing could be done, 130 after an interruption.
    """
    arguments = parser().parse_args(words)
    try:
        return arguments.command(arguments)
    except KeyboardInterrupt:
        goes_on = arguments.command in (encode, decode) and not arguments.overwrite
        rest = ", and the same command goes on from there" if goes_on else ""
        sys.stderr.write(f"\ninterrupted: what was written is whole{rest}\n")
        return 130
    except BrokenPipeError:  # whoever read the lines has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ModuleNotFoundError as error:
        sys.stderr.write(f"error: needs the package {error.name}: pip install 'vqkit[media]'\n")
    except (ValueError, OSError, ImportError) as error:
        sys.stderr.write(f"error: {error}\n")
    return 2


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    top = argparse.ArgumentParser(
        prog="python -m vqkit",
        description="Picture and sound files to files of indices and back.",
        epilog=f"examples:{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(required=True, metavar="encode | decode | info | rate | draw | convert")
    one = commands.add_parser("encode", help="pictures or sound to files of indices (.vqk)")
    one.set_defaults(command=encode)
    _add_model(one)
    _add_encoding(one)
    _add_target(one)
    one = commands.add_parser("decode", help="files of indices to pictures or sound")
    one.set_defaults(command=decode)
    _add_model(one)
    _add_target(one)
    one.add_argument("--ending", help="of the files in a folder: .png, .wav (the defaults), .jpg, .flac, ...")
    one.add_argument("--levels", type=int, help="decode the first levels only, where there are several")
    _add_tokens(one, "decode")
    one.add_argument("--partial", action="store_true", help="decode what is whole of damaged files")
    one.add_argument("--conceal", choices=CONCEALMENTS, help="the same, and fill what is missing")
    one.add_argument(
        "--most-cells", type=_positive, help="indices that a file may hold; see the message that asks for it"
    )
    one = commands.add_parser("info", help="what files of indices, published weights or tokenizers hold")
    one.set_defaults(command=info)
    _add_family(one)
    one.add_argument("source", type=Path, help="a file of indices, a folder of them, weights, or a saved tokenizer")
    one = commands.add_parser("rate", help="bits that files would take, nominal, zero-order and coded")
    one.set_defaults(command=rate)
    _add_model(one)
    _add_encoding(one)
    one.add_argument("source", type=Path, help="a file, or a folder")
    one = commands.add_parser("draw", help="what codes stand for: a sheet of places in pictures or sound")
    one.set_defaults(command=draw)
    _add_model(one)
    _add_reading(one)
    one.add_argument("--code", type=int, action="append", default=[], help="a number; several times for several")
    one.add_argument("--level", type=int, default=0, help="of which level they are, where there are several")
    one.add_argument("--columns", type=_positive, default=12, help="places that are shown of each (default: 12)")
    one.add_argument("--seed", type=int, default=0, help="of the choice of places (default: 0)")
    one.add_argument("source", type=Path, help="a file, or a folder with its sub-folders")
    one.add_argument("target", type=Path, help="the sheet, .png; of sound also .wav, to hear them")
    one = commands.add_parser("convert", help="published weights to a saved tokenizer")
    one.set_defaults(command=convert_weights)
    _add_family(one)
    one.add_argument("--license", help="of the weights; the default is that of their model card or family")
    one.add_argument("--accept-license", metavar="LICENSE", help="once more, where it forbids commercial use")
    one.add_argument(
        "source",
        help="a file of weights, a folder of diffusers or huggingface_hub, or a name on the hub (docs/weights.md)",
    )
    one.add_argument("target", type=Path, help="the folder of the tokenizer")
    return top


def _add_family(one: argparse.ArgumentParser) -> None:
    what = (
        "whose weights they are, as in Python: LlamaGenVQ, 'VARAutoencoder(scales=[1, 2, 4])'; default: by their names"
    )
    one.add_argument("--family", type=_family, help=what)


def _add_model(one: argparse.ArgumentParser) -> None:
    one.add_argument("--tokenizer", required=True, metavar="FOLDER", help="saved tokenizer, or its name on the hub")
    one.add_argument("--allow", action="append", default=[], metavar="PACKAGE", help="of parts that you wrote")
    one.add_argument("--device", type=_device, default="cpu", help="where it runs, such as cuda (default: cpu)")
    one.add_argument("--batch-size", type=_positive, default=1, help="pictures of one size that run together")
    one.add_argument("--tile-size", type=_positive, help="larger pictures run tile by tile (about 2048 pixels)")
    one.add_argument("--overlap", type=int, help="pixels at the inner edges of tiles that are dropped (about 128)")


def _add_encoding(one: argparse.ArgumentParser) -> None:
    one.add_argument("--coder", choices=("auto", *CODERS), default="auto", help="auto: the one that is shortest")
    _add_reading(one)
    _add_tokens(one, "keep")


def _add_reading(one: argparse.ArgumentParser) -> None:
    one.add_argument("--white", type=float, help="what is white in pictures of more than 8 bits")
    one.add_argument("--max-pixels", type=_positive, help="of a picture; the default is what Pillow takes for safe")
    one.add_argument("--crop", action="store_true", help="shrink pictures and take the middle, for one size alone")
    one.add_argument("--downmix", choices=DOWNMIXES, default="mean", help="how several channels become one")


def _add_tokens(one: argparse.ArgumentParser, what: str) -> None:
    one.add_argument("--tokens", type=_positive, help=f"{what} the first tokens only, of latent tokens such as TiTok's")


def _add_target(one: argparse.ArgumentParser) -> None:
    one.add_argument("--overwrite", action="store_true", help="make files anew that are there")
    one.add_argument("source", type=Path, help="a file, or a folder with its sub-folders")
    one.add_argument("target", type=Path, help="the file, or the folder, that it becomes")


def _device(text: str) -> str:
    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError) as error:  # as PyTorch refuses what it does not know, and was built without
        raise argparse.ArgumentTypeError(f"{text}: {str(error).splitlines()[0]}") from error
    return text


def _family(text: str) -> Family:
    try:
        return family_named(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected at least 1")
    return int(text)


def encode(arguments: argparse.Namespace) -> int:
    """Pictures or sound to files of indices."""
    run = Run()
    medium, codec = _loaded(arguments, run)
    jobs = planned(arguments.source, arguments.target, medium.suffixes, ENDING, run.failed)
    waiting = [job for job in jobs if arguments.overwrite or not is_done(job, codec)]
    run.total, run.left_out = len(jobs) + len(run.failures), len(jobs) - len(waiting)
    rates: list[Rate] = []

    def work(batch: list[Job], files: list[Any]) -> Iterator[Job]:
        for job, coded in zip(batch, medium.encode(files), strict=True):
            kept = first_tokens(medium.tokenizer, coded.indices, arguments.tokens)
            packed = codec.pack(kept, extent=coded.extent, coder=arguments.coder)
            write_whole(job.target, packed.content)
            rates.append(Rate.of(packed, coded.extent))
            yield job

    Batches(run, medium.load, medium.alike, medium.batch_size).each(waiting, work)
    run.clear()
    taken = f": {total(rates).summary(medium.unit)}" if rates else ""
    sys.stdout.write(f"{run.summary()} -> {escaped(str(arguments.target))}{taken}\n")
    return run.status


def convert_weights(arguments: argparse.Namespace) -> int:
    """Published weights to a saved tokenizer."""
    tokenizer = convert(
        arguments.source,
        arguments.target,
        family=arguments.family,
        license=arguments.license,
        accept_license=arguments.accept_license,
    )
    told = ", ".join(f"{name} {text}" for name, text in (tokenizer.provenance or {}).items())
    sys.stdout.write(f"{escaped(told)} -> {escaped(str(arguments.target))}\n")
    return 0


def is_done(job: Job, codec: TokenCodec) -> bool:
    """Whether the file of indices is there, whole, and no older than its source.

    Raises:
        ValueError: another file is there, or one of another tokenizer.
    """
    if not job.target.exists():
        return False
    name, data = escaped(str(job.target)), read_file(job.target)
    if data[: len(MAGIC)] != MAGIC:
        raise ValueError(f"{name} is there and holds no indices: give another target, or --overwrite")
    if not codec.fingerprint.startswith(data[FINGERPRINT]):  # also where the header is damaged
        raise ValueError(f"{name} was made by another tokenizer: give another target, or --overwrite")
    try:
        header = inspect(data, most_cells=sys.maxsize)
    except ValueError:
        return False
    return is_whole(data, header) and job.target.stat().st_mtime >= job.source.stat().st_mtime


def decode(arguments: argparse.Namespace) -> int:
    """Files of indices to pictures or sound."""
    run = Run()
    medium, codec = _loaded(arguments, run)
    ending = f".{arguments.ending.lstrip('.')}" if arguments.ending else medium.ending
    jobs = planned(arguments.source, arguments.target, {ENDING}, ending, run.failed)
    for job in jobs[:1]:
        medium.check_writable(job.target)
    waiting = [job for job in jobs if arguments.overwrite or not job.target.exists()]
    run.total, run.left_out = len(jobs) + len(run.failures), len(jobs) - len(waiting)
    conceal = CONCEALMENTS[arguments.conceal](medium.tokenizer) if arguments.conceal else None

    def load(path: Path) -> Coded:
        data = read_file(path)
        unpacked = codec.unpack(
            data,
            partial=arguments.partial or conceal is not None,
            conceal=conceal,
            most_cells=arguments.most_cells,
        )
        if (batch := inspect(data, most_cells=sys.maxsize).batch) != 1:
            held = "single vectors" if batch is None else f"{batch} samples"
            raise ValueError(f"holds {held}, expected one: decode it with vqkit.bitstream.TokenCodec")
        if unpacked.extent is None:
            raise ValueError("does not say how large the original was: decode it with vqkit.bitstream.TokenCodec")
        if unpacked.missing:
            lost = "; ".join(map(str, unpacked.missing[:SHOWN])) + "; ..." * (len(unpacked.missing) > SHOWN)
            run.say(f"{escaped(str(path))}: decoded without {len(unpacked.missing)} of its packets: {lost}")
        indices = first_levels_of(medium.tokenizer.quantizer, unpacked.indices, arguments.levels, name="--levels ")
        return Coded(first_tokens(medium.tokenizer, indices, arguments.tokens), unpacked.extent)

    def work(batch: list[Job], files: list[Coded]) -> Iterator[Job]:
        for job, _ in zip(batch, medium.write(files, [job.target for job in batch]), strict=True):
            yield job

    Batches(run, load, lambda coded: coded.indices.shape, medium.batch_size).each(waiting, work)
    run.clear()
    sys.stdout.write(f"{run.summary()} -> {escaped(str(arguments.target))}\n")
    return run.status


def info(arguments: argparse.Namespace) -> int:
    """What files of indices hold, or published weights, or a saved tokenizer."""
    run = Run()
    if are_weights(arguments.source):
        lines = weights_description(arguments.source, arguments.family)
        sys.stdout.write("\n  ".join([escaped(str(arguments.source)), *map(escaped, lines)]) + "\n")
        return run.status
    files, run.failures = found(arguments.source, {ENDING})
    for path in files:
        name = escaped(str(path))
        try:
            lines, whole = description(read_file(path))
        except (ValueError, OSError) as error:
            run.failed(name, reason(path, error))
            continue
        sys.stdout.write("\n  ".join([name, *lines]) + "\n")
        if not whole:
            run.failures[name] = "damaged"
    return run.status


def rate(arguments: argparse.Namespace) -> int:
    """A table of the bits that files would take."""
    run = Run()
    medium, codec = _loaded(arguments, run)
    files, skipped = found(arguments.source, medium.suffixes)
    for name, why in skipped.items():
        run.failed(name, why)
    run.total = len(files) + len(run.failures)
    rates: list[Rate] = []
    sys.stdout.write(f"{FIGURES}  rates in {medium.unit}\n")

    def work(batch: list[Job], loaded: list[Any]) -> Iterator[Job]:
        for job, coded in zip(batch, medium.encode(loaded), strict=True):
            kept = first_tokens(medium.tokenizer, coded.indices, arguments.tokens)
            rates.append(Rate.of(codec.pack(kept, extent=coded.extent, coder=arguments.coder), coded.extent))
            run.clear()
            sys.stdout.write(f"{rates[-1].row()}  {job.name}\n")
            yield job

    Batches(run, medium.load, medium.alike, medium.batch_size).each([Job(path, path) for path in files], work)
    if len(rates) > 1:
        sys.stdout.write(f"{total(rates).row()}  all {len(rates)} files\n")
    return run.status


def draw(arguments: argparse.Namespace) -> int:
    """A sheet of what codes stand for."""
    from vqkit.command_line.draw import draw_codes

    run = Run()
    medium, _ = _loaded(arguments, run)
    draw_codes(
        medium,
        run,
        lambda line: sys.stdout.write(f"{line}\n"),
        arguments.source,
        arguments.target,
        codes=arguments.code,
        level=arguments.level,
        columns=arguments.columns,
        seed=arguments.seed,
    )
    sys.stdout.write(f"{run.summary()} -> {escaped(str(arguments.target))}\n")
    return run.status


def _loaded(arguments: argparse.Namespace, run: Run) -> tuple[Medium[Any], TokenCodec]:
    """What reads and writes the tokenizer's files, and the coder of its indices."""
    tokenizer = Tokenizer.from_pretrained(
        arguments.tokenizer, map_location=arguments.device, allow=("vqkit", *arguments.allow)
    )
    if getattr(arguments, "tokens", None) is not None:
        check_prefixes(tokenizer)
    medium: Medium[Any]
    if isinstance(tokenizer, AudioTokenizer):
        from vqkit.command_line.recordings import Recordings

        medium = Recordings(tokenizer, downmix=getattr(arguments, "downmix", "mean"), say=run.say)
    else:
        from vqkit.command_line.pictures import Pictures

        medium = Pictures(
            tokenizer,
            batch_size=arguments.batch_size,
            tile_size=arguments.tile_size,
            overlap=arguments.overlap,
            white=getattr(arguments, "white", None),
            max_pixels=getattr(arguments, "max_pixels", None),
            crop=getattr(arguments, "crop", False),
        )
    return medium, TokenCodec.of(tokenizer)

"""One tokenizer cut from 4,096 codes to 64, its decoder trained on at each step: a rate-distortion line at coded bytes.

    python scripts/ladder.py --base runs/ladder            # cut, train on, measure
    python scripts/ladder.py --base runs/ladder --measure  # measure again what is there

The base is a run of `configs/image/ladder.yaml`. Each step halves the codebook by `vqkit.surgery.shrink`, weighted by
how often the training photographs choose each code, and trains the rest on with the encoder frozen, by
`python -m trainers fit --init_from`. Beside it stand the base cut at once and not trained on, tokenizers trained from
the start (`--scratch`), and JPEG, WebP and AVIF at the same bytes. It writes `docs/results/ladder.json` and
`ladder.png`.
"""

import argparse
import json
import os
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from first_run import ROOT, bfloat16_is_fast, fit, of_run, processor, training_facts
from matplotlib.figure import Figure
from pages import captioned, formatted, table_lines
from torch import Tensor

from trainers.core.figures import write_figure
from trainers.image.baselines import FILE_FORMATS, FileFormat, image_files
from trainers.image.comparison import PREPROCESSING, load_photographs, metrics_of, normalized
from trainers.image.metrics import protocol, to_uint8_grid
from vqkit import Tokenizer
from vqkit.bitstream import Picture, TokenCodec
from vqkit.saving.files import write_json
from vqkit.surgery import shrink, with_quantizer

FOLDERS = ROOT / "assets/images/train", ROOT / "assets/images/eval"
CONFIG = ROOT / "configs/image/ladder.yaml"
BESIDE = {"jpeg": "JPEG", "webp": "WebP", "avif": "AVIF"}
SIZES = (4096, 2048, 1024, 512, 256, 128, 64)
PATCH_SIZE = 4
RECORD, PICTURE = ROOT / "docs/results/ladder.json", ROOT / "docs/results/ladder.png"
KEPT = ("psnr", "ssim", "bpp", "entropy_bpp", "codebook_usage")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="run folder of configs/image/ladder.yaml")
    parser.add_argument("--steps", type=int, default=600, help="training steps behind each cut")
    parser.add_argument("--scratch", type=Path, nargs="*", default=[], help="runs of smaller codebooks from the start")
    parser.add_argument("--measure", action="store_true", help="measure the runs that are there")
    arguments = parser.parse_args()
    if not arguments.measure:
        climb_down(arguments.base, arguments.steps)
    record = measured(arguments.base, arguments.scratch) | {"processor": processor()}
    write_json(RECORD, record)
    draw(record, PICTURE)


def climb_down(base: Path, steps: int) -> None:
    """Cut and train on, from each size to the next; each step is a run beside the base."""
    photographs = load_photographs(FOLDERS[0], PATCH_SIZE)
    before = base
    for size in SIZES[1:]:
        start, name = base.parent / f"{base.name}_{size}_cut", f"{base.name}_{size}"
        cut(before, size, photographs).save_pretrained(start)
        options = {
            "config": CONFIG.relative_to(ROOT),
            "runs": os.path.relpath(base.parent, ROOT),  # where `run` runs it
            "name": name,
            "init_from": os.path.relpath(start, ROOT),
            "model.freeze": "[encoder]",
            "model.tokenizer.quantizer.codebook_size": size,
            "data.root": FOLDERS[0].relative_to(ROOT),
            "data.validation_root": FOLDERS[1].relative_to(ROOT),
            "data.repeats": 400,
            "trainer.precision": "bf16-mixed" if bfloat16_is_fast() else "32-true",
            "trainer.max_steps": steps,
        }
        fit(options)
        before = base.parent / name


def cut(run_folder: Path, codebook_size: int, photographs: Sequence[Tensor]) -> Tokenizer:
    """The tokenizer of a run with fewer codes, each weighted by how often the photographs choose it."""
    tokenizer = of_run(run_folder)
    indices = torch.cat([tokenizer.encode(normalized(photograph)).flatten() for photograph in photographs])
    usage = torch.bincount(indices, minlength=tokenizer.quantizer.codebook_size)
    surgery = shrink(tokenizer.quantizer, codebook_size, usage=usage)
    print(surgery.reports[0], flush=True)
    return with_quantizer(tokenizer, surgery.quantizer)


def measured(base: Path, scratch: Sequence[Path]) -> dict[str, Any]:
    """Figures of every step, of what they are compared with, and how they were made."""
    originals, photographs = (load_photographs(folder, PATCH_SIZE) for folder in reversed(FOLDERS))
    at_once = [of_run(base), *[cut(base, size, photographs) for size in SIZES[1:]]]
    runs = [base, *[base.parent / f"{base.name}_{size}" for size in SIZES[1:]]]
    steps = list(accumulate(training_facts(item, "")["steps"] for item in runs))
    rows: dict[str, Any] = {
        "trained": [figures(of_run(item), originals) for item in runs],
        "cut": [figures(item, originals) for item in at_once],
        "scratch": [figures(of_run(item), originals) for item in scratch],
    }
    for name, counts in (("trained", steps), ("scratch", [training_facts(item, "")["steps"] for item in scratch])):
        rows[name] = [row | {"steps": count} for row, count in zip(rows[name], counts, strict=True)]
    rates = [row["coded_bpp"] for row in rows["trained"]]
    files = {name.lower(): [file_figures(originals, rate, name) for rate in rates] for name in FILE_FORMATS}
    split = "assets/images/eval: " + ", ".join(path.stem for path in sorted(FOLDERS[1].iterdir()))
    facts = protocol(rows["trained"][0], split=split, preprocessing=PREPROCESSING, precision="measured in float32")
    coded = "files of vqkit.bitstream, one for each photograph, headers included / its pixels, then the mean"
    return {"rows": rows | files, "protocol": facts | {"coded_bpp": coded}}


@torch.no_grad()
def figures(tokenizer: Tokenizer, originals: Sequence[Tensor]) -> dict[str, Any]:
    """Distortion and rates of a tokenizer."""
    tokens = [tokenizer.encode(normalized(original)) for original in originals]
    images = [to_uint8_grid(tokenizer.decode(each))[0] for each in tokens]
    codec, rates, coders = TokenCodec.of(tokenizer), [], Counter[str]()
    for original, each in zip(originals, tokens, strict=True):
        packed = codec.pack(each, extent=Picture(*original.shape[1:]))
        coders += packed.coders
        rates.append(packed.coded_bits / original[0].numel())
    found = metrics_of(tokenizer.quantizer.codebook_size, originals, images, [each[0] for each in tokens]).compute()
    kept = {name: found[name] for name in KEPT} | {"coded_bpp": sum(rates) / len(rates)}
    return {"codes": tokenizer.quantizer.codebook_size, **kept, "images": found["images"], "coders": dict(coders)}


def file_figures(originals: Sequence[Tensor], rate: float, file_format: FileFormat) -> dict[str, Any]:
    """Distortion of a file format at the quality whose rate is nearest."""
    images, rate, quality = image_files(originals, rate, file_format)
    found = metrics_of(1, originals, images, [torch.zeros(1, dtype=torch.int64)] * len(images)).compute()
    return {"psnr": found["psnr"], "ssim": found["ssim"], "coded_bpp": rate, "quality": quality}


def table() -> str:
    """Lines of Markdown: each size beside the same cut at once and image files of the same bytes."""
    record = json.loads(RECORD.read_text())
    forms = ["{bpp:.4f}", "{entropy_bpp:.3f}", "{coded_bpp:.3f}", "{psnr:.2f} dB", "{ssim:.3f}"]
    rows = []
    for row, cut, *files in zip(*(record["rows"][name] for name in ("trained", "cut", *BESIDE)), strict=True):
        own = [*formatted(row, ["{codes:,}", *forms]), *formatted(cut, ["{coded_bpp:.3f}", "{psnr:.2f} dB"])]
        rows.append([*own, *(f"{file['psnr']:.2f} dB, {file['coded_bpp']:.3f}" for file in files)])
    scratch = ["{codes:,}, from the start, {steps:,} steps", *forms]
    rows += [[*formatted(row, scratch), *["-"] * 5] for row in record["rows"]["scratch"]]
    heads = ["codes", "bits per pixel: nominal", "zero-order", "coded", "PSNR, trained on", "SSIM"]
    heads += ["cut at once: coded", "PSNR", *BESIDE.values()]
    facts, steps = record["protocol"], [row["steps"] for row in record["rows"]["trained"]]
    caption = (
        f"{facts['images']} photographs that it never saw ({facts['split']}), {facts['preprocessing']}; coded: "
        f"{facts['coded_bpp']}. JPEG, WebP and AVIF at the quality whose rate, which stands behind the "
        f"PSNR, is nearest to the coded one. {steps[0]:,} steps for "
        f"the base, {steps[1] - steps[0]:,} behind each cut, {steps[-1]:,} in all; one run, {record['processor']}."
    )
    return captioned(table_lines(heads, rows, words=()), caption)


def draw(record: dict[str, Any], path: Path) -> None:
    """The rate-distortion lines."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    styles = {"trained": "o-", "cut": "o:", "scratch": "s", "jpeg": "^--", "webp": "v--", "avif": "d--"}
    titles = {"trained": "cut, decoder trained on", "cut": "cut at once, not trained on", "scratch": "from the start"}
    for name, style in styles.items():
        rows = record["rows"][name]
        points = [row["coded_bpp"] for row in rows], [row["psnr"] for row in rows]
        if rows:
            axes.plot(*points, style, label=titles.get(name, name.upper()))
    for row in record["rows"]["trained"]:
        axes.annotate(
            str(row["codes"]), (row["coded_bpp"], row["psnr"]), fontsize=7, xytext=(4, -9), textcoords="offset points"
        )
    axes.set(xlabel="bits per pixel, whole files", ylabel="PSNR in dB")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    write_figure(figure, path)


if __name__ == "__main__":
    main()

"""Small twins of the methods: one network, one data set, equal steps and equal bits; a table that ranks them.

    python scripts/twins.py                  # train and measure what is not there yet, first to last
    python scripts/twins.py simvq fsq        # these
    python scripts/twins.py vq --try 200     # so many steps, printed and not kept
    python scripts/twins.py --measure        # what there is is measured again, not trained
    python scripts/twins.py --list           # what there is

Each is trained by `python -m trainers fit --config configs/image/twins.yaml --quantizer METHOD`, or with an overlay of
`configs/twins/`, and measured on photographs that it never saw. `docs/results/twins.json` keeps the figures of each by
a hash of its settings: what is there is not trained again, and what was trained under other settings is no twin.
"""

import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from first_run import ROOT, fit, of_run
from matplotlib.figure import Figure
from pages import captioned, formatted, table_lines
from records import machine, measuring_parser
from torchvision.transforms.functional import center_crop

from trainers.core.figures import write_figure
from trainers.image import AlexNetSTLPIPS, PerceptualMeasure
from trainers.image.comparison import load_photographs
from trainers.image.metrics import ImageMetrics, protocol
from trainers.run.bases import read_config
from vqkit.backbones.protocol import properties_of
from vqkit.bitstream import TokenCodec
from vqkit.saving.files import write_json

CONFIG = ROOT / "configs/image/twins.yaml"
RECORD = ROOT / "docs/results/twins.json"
PICTURE = ROOT / "docs/results/twins.png"
SIDE = 512
PREPROCESSING = f"native size, the middle of each, at most {SIDE} pixels in height and width"
COLUMNS = {
    "PSNR": "{psnr:.2f} dB",
    "SSIM": "{ssim:.3f}",
    "ST-LPIPS": "{st_alex_lpips:.3f}",
    "bits per pixel": "{bpp:.4f}",
    "coded": "{coded_bpp:.4f}",
    "usage": "{codebook_usage:.1%}",
    "perplexity": "{perplexity:.0f}",
}
"""Of the table."""
KEPT = ("psnr", "ssim", "st_alex_lpips", "bpp", "entropy_bpp", "coded_bpp", "codebook_usage", "perplexity")


@dataclass(frozen=True)
class Twin:
    """One of the cells.

    Attributes:
        title: in the table.
        word: for `--quantizer`; None where an overlay says it all.
        overlay: name of a file in `configs/twins/`.
    """

    title: str
    word: str | None = None
    overlay: str | None = None

    def configs(self) -> list[Path]:
        """Files, each laid over the one before."""
        return [CONFIG, *([ROOT / f"configs/twins/{self.overlay}.yaml"] if self.overlay else [])]

    def settings(self) -> dict[str, Any]:
        """All that decides what is trained, beside the code."""
        return {"configs": [read_config(file) for file in self.configs()], "quantizer": self.word}

    def key(self) -> str:
        """A hash of the settings."""
        return hashlib.sha256(json.dumps(self.settings(), sort_keys=True).encode()).hexdigest()[:16]


TWINS = {
    "vq": Twin("VQ, trained by gradient", "vq"),
    "ema": Twin("VQ, moving averages and restarts", "ema"),
    "simvq": Twin("SimVQ", "simvq"),
    "fsq": Twin("FSQ", "fsq"),
    "ibq": Twin("IBQ", "ibq"),
    "cvq": Twin("CVQ", "cvq"),
    "fvq": Twin("FVQ", "fvq"),
    "lfq": Twin("LFQ", "lfq"),
    "bsq": Twin("BSQ", "bsq"),
    "vqgan_lc": Twin("VQGAN-LC, centres of the first latents for features", "vqgan_lc"),
    "rotation": Twin("moving averages, rotation trick", "rotation"),
    "diveq": Twin("DiVeQ", "diveq"),
    "gumbel": Twin("Gumbel-softmax", "gumbel"),
    "factorized_groups": Twin("FQGAN's two codebooks of 32 codes", overlay="factorized"),
    "wasserstein": Twin("Wasserstein VQ", overlay="wasserstein"),
    "seeded": Twin("a random codebook, never trained", "seeded"),
    "factorized": Twin("ViT-VQGAN's unit codes in 8 dimensions", "factorized"),
    "nsvq": Twin("NSVQ", "nsvq"),
    "reinmax": Twin("ReinMax", "reinmax"),
    "coda": Twin("CODA's attention to a codebook", "coda"),
}
"""By the name of the cell, in the order in which they are trained."""


def main() -> None:
    parser = measuring_parser(__doc__)
    parser.add_argument("names", nargs="*", choices=[*TWINS, []], metavar="METHOD", help="cells; default: all")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/twins", help="folder of the run folders")
    parser.add_argument("--try", type=int, dest="steps", help="train so many steps, print figures and keep nothing")
    parser.add_argument("--measure", action="store_true", help="measure the runs of cells that are there again")
    parser.add_argument("--list", action="store_true", help="say what there is")
    arguments = parser.parse_args()
    names = arguments.names or list(TWINS)
    if arguments.list:
        print(
            *(f"{name}: {'there' if TWINS[name].key() in cells() else 'not trained yet'}" for name in names), sep="\n"
        )
        return
    for name in names:
        if arguments.steps is not None:
            print(json.dumps(cell(name, arguments.runs, steps=arguments.steps), indent=1))
        elif TWINS[name].key() in cells():
            if arguments.measure or name not in trained():
                keep(name, cells()[TWINS[name].key()] | measured(arguments.runs / name, validation_root(name)))
        elif not arguments.measure:
            keep(name, cell(name, arguments.runs, circumstances=arguments.circumstances))
    if arguments.steps is None:
        draw(trained(), PICTURE)


def cells() -> dict[str, Any]:
    """What was measured, by the hash of the settings."""
    found: dict[str, Any] = json.loads(RECORD.read_text())["cells"] if RECORD.is_file() else {}
    return found


def keep(name: str, made: dict[str, Any]) -> None:
    """Write a cell into the record, which other processes may have written to meanwhile."""
    write_json(RECORD, {"cells": cells() | {TWINS[name].key(): made}})


def trained() -> dict[str, dict[str, Any]]:
    """The cells of `TWINS` that are there, measured as it is done now, the best PSNR first."""
    found = {name: cells().get(twin.key()) for name, twin in TWINS.items()}
    found = {name: row for name, row in found.items() if row and row["protocol"]["preprocessing"] == PREPROCESSING}
    return dict(sorted(found.items(), key=lambda item: -item[1]["psnr"]))


def cell(name: str, runs: Path, *, steps: int | None = None, circumstances: str = "") -> dict[str, Any]:
    """Train a twin and measure it.

    Args:
        name: of `TWINS`.
        runs: folder of its run folder.
        steps: in place of the configuration's.
        circumstances: see the command.
    """
    twin = TWINS[name]
    trainer = twin.settings()["configs"][0]["trainer"]
    options: dict[str, Any] = {"config": [file.relative_to(ROOT) for file in twin.configs()]}
    options |= {"quantizer": twin.word} if twin.word else {}
    options |= {"runs": os.path.relpath(runs, ROOT), "name": name}
    options |= {"trainer.max_steps": steps} if steps else {}
    start = time.monotonic()
    fit(options)
    made = {"seconds": round(time.monotonic() - start), "machine": machine(circumstances)}
    facts = {"name": name, "steps": steps or trainer["max_steps"], "precision": trainer["precision"]}
    return facts | measured(runs / name, validation_root(name)) | made


def validation_root(name: str) -> Path:
    """Of the photographs that a twin never saw."""
    data = TWINS[name].settings()["configs"][0]["data"]["init_args"]
    return ROOT / data["validation_root"]


@torch.no_grad()
def measured(run_folder: Path, folder: Path) -> dict[str, Any]:
    """Distortion, rates and the use of codes on photographs, and how these were measured."""
    tokenizer = of_run(run_folder)
    photographs = load_photographs(folder, properties_of(tokenizer.encoder).downsampling_factor or 1)
    measures = [PerceptualMeasure(AlexNetSTLPIPS(), name="st_alex")]
    quantizer = tokenizer.quantizer
    metrics = ImageMetrics(quantizer.level_sizes, books=quantizer.level_books, measures=measures)
    codec = TokenCodec.of(tokenizer)
    for photograph in photographs:
        size = [min(length, SIDE) for length in photograph.shape[1:]]
        image = center_crop(photograph, size)[None] / 127.5 - 1
        indices = tokenizer.encode(image)
        metrics.update(image, tokenizer.decode(indices), indices)
        metrics.add_coded(codec, image, indices)
    found = metrics.compute()
    split = f"{folder.relative_to(ROOT)}, {len(photographs)} photographs"
    facts = protocol(found, measures=measures, split=split, preprocessing=PREPROCESSING, precision="32-true")
    return {name: found[name] for name in KEPT} | {"protocol": facts}


def table() -> str:
    """Lines of Markdown: the twins by their PSNR, then those that are not trained yet."""
    rows = trained()
    lines = [[TWINS[name].title, *formatted(row, COLUMNS.values())] for name, row in rows.items()]
    absent = [twin.title for name, twin in TWINS.items() if name not in rows]
    lines += [[title, "not trained yet", *[""] * (len(COLUMNS) - 1)] for title in absent]
    return captioned(table_lines(["", *COLUMNS], lines), *([caption(rows)] if rows else []))


def caption(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """How the rows were trained and measured, where it is the same for all.

    Raises:
        ValueError: it is not: one was measured in another way.
    """
    facts = {(row["steps"], row["precision"], json.dumps(row["protocol"], sort_keys=True)) for row in rows.values()}
    if len(facts) > 1:
        raise ValueError(f"{', '.join(rows)} differ in steps, precision or protocol: measure again with --measure")
    row = next(iter(rows.values()))
    machines = "; ".join(sorted({row["machine"] for row in rows.values()}))
    return (
        f"{row['protocol']['split']}, {row['protocol']['preprocessing']}; {row['steps']} steps of 16 squares of 128 "
        f"pixels, {row['precision']}, seed 0; {machines}; `python scripts/twins.py`."
    )


def draw(rows: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Distortion over the rate of the files, a point for each twin that did not collapse to a few codes."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    for axes, (key, label) in zip(figure.subplots(1, 2), MEASURES.items(), strict=True):
        for name, row in rows.items():
            if row["codebook_usage"] < COLLAPSED:
                continue
            axes.plot(row["coded_bpp"], row[key], "o", markersize=4, color="C0")
            axes.annotate(name, (row["coded_bpp"], row[key]), fontsize=7, xytext=(3, 3), textcoords="offset points")
        axes.set(xlabel="bits per pixel, whole files", ylabel=label)
        axes.margins(0.12)
        axes.grid(alpha=0.3)
    write_figure(figure, path)


MEASURES = {"psnr": "PSNR in dB", "st_alex_lpips": "ST-LPIPS (lower is better)"}
"""What is drawn."""
COLLAPSED = 0.01
"""Share of its codes below which a twin is not drawn: it would press all others together."""


if __name__ == "__main__":
    main()

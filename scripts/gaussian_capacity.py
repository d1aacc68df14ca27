"""What quantizers make of their bits on white Gaussian vectors, for which Shannon's bound is known.

    python scripts/gaussian_capacity.py            # measures what docs/results/gaussian_capacity.json lacks
    python scripts/gaussian_capacity.py --again    # measures all of it again

Structures are fitted (`fit_gaussian`) or taken as they are; methods learn by their own rules: white vectors stand in
the place of an encoder's, nothing in that of a decoder. A quantizer below the bound ends the script with an error.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, get_args

import torch
import torch.nn.functional as F
from first_run import ROOT
from matplotlib.figure import Figure
from pages import captioned, table_lines
from records import load_record, machine, measuring_parser
from torch import Tensor

from trainers.core.figures import write_figure
from vqkit import (
    BSQ,
    FSQ,
    LFQ,
    BaseQuantizer,
    GroupedQuantizer,
    MultiScaleQuantizer,
    ProjectedQuantizer,
    Quantizer,
    ResidualQuantizer,
)
from vqkit.methods import Method
from vqkit.metrics import GaussianCapacity, fit_gaussian, gaussian_capacity
from vqkit.saving.files import write_json

RECORD = ROOT / "docs/results/gaussian_capacity.json"
PICTURE = ROOT / "docs/results/gaussian_capacity.png"
NUMBERS = 2**20
"""At least so many are measured of each, and at least 131,072 vectors."""
STEPS, BATCH, RATE = 800, 1024, 0.01
"""Of the methods' own training: Adam, whose rate falls to 0 as a cosine."""
METHOD_SIZE, METHOD_DIM = 256, 4
"""Of their codebooks: 2 bits a dimension."""


@dataclass(frozen=True)
class Cell:
    """One quantizer.

    Attributes:
        title: in the table.
        family: what is one line of the picture; "" for the table alone.
        build: a new one.
        prepare: what happens to it before it is measured.
        positions: the shape of a sample, for quantizers of maps.
        bounded: whether vectors go into the tanh of FSQ as they are.
        seeds: how many starts are tried, of which the best is kept, by other samples than those of the figure.
    """

    title: str
    family: str
    build: Callable[[], BaseQuantizer]
    prepare: Callable[..., None] = fit_gaussian
    positions: tuple[int, ...] = ()
    bounded: bool = False
    seeds: int = 1

    def measured(self) -> dict[str, Any]:
        """The figures of the best start."""
        tried = []
        for seed in range(1, 1 + self.seeds):
            torch.manual_seed(seed)
            quantizer = self.build()
            self.prepare(quantizer, positions=self.positions, seed=seed)
            quantizer.eval()
            tried.append((self.capacity(quantizer, seed=1000).distortion if self.seeds > 1 else 0.0, seed, quantizer))
        best = min(tried)[2]
        found = self.capacity(best, seed=0)
        return asdict(found) | {"dim": best.dim, "levels": list(best.level_sizes)}

    def capacity(self, quantizer: BaseQuantizer, seed: int) -> GaussianCapacity:
        """As many samples as give `NUMBERS`."""
        encoder = quantizer.unbounded if isinstance(quantizer, FSQ) and not self.bounded else None
        samples = max(2**17, math.ceil(NUMBERS / quantizer.dim))
        return gaussian_capacity(quantizer, encoder=encoder, positions=self.positions, samples=samples, seed=seed)


def as_it_is(quantizer: BaseQuantizer, *, positions: tuple[int, ...], seed: int) -> None:
    """Nothing is fitted."""


def learned(quantizer: BaseQuantizer, *, positions: tuple[int, ...], seed: int) -> None:
    """The method's own training, by its losses and the squared error of what it passes on."""
    generator = torch.Generator().manual_seed(100 + seed)
    draw = partial(torch.randn, BATCH, *positions, quantizer.dim, generator=generator)
    quantizer.initialize([draw() for _ in range(32)], seed=seed)
    trained = [parameter for parameter in quantizer.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam([*trained, torch.nn.Parameter(torch.zeros(1))], lr=RATE)  # some have none
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    quantizer.train()
    for _ in range(STEPS):
        vectors: Tensor = draw()
        output = quantizer(vectors)
        optimizer.zero_grad()
        (F.mse_loss(output.quantized, vectors) + output.loss).backward()
        optimizer.step()
        schedule.step()
    quantizer.step()


SIGN, GRID, SCALAR, PLANE, FOUR, EIGHT, CHAIN, RANDOM, METHOD = (
    "signs (LFQ, BSQ)",
    "uniform grid (FSQ)",
    "Lloyd-Max scalar",
    "codebook, D = 2",
    "codebook, D = 4",
    "codebook, D = 8",
    "residual codebooks, D = 8",
    "random codebook, D = 4",
    "methods, D = 4, K = 256",
)
book = partial(Quantizer, "ema")


def scalars(levels: int, dim: int = 1) -> GroupedQuantizer:
    """Each number by itself."""
    return GroupedQuantizer(partial(book, dim=1, codebook_size=levels), dim)


def rotated(levels: int, dim: int) -> BaseQuantizer:
    """The same behind a random rotation, which the way out undoes."""
    quantizer = ProjectedQuantizer(partial(scalars, levels, dim), dim)
    rotation, _ = torch.linalg.qr(torch.randn(dim, dim))
    for part, weight in ((quantizer.project_in, rotation), (quantizer.project_out, rotation.mT)):
        part.load_state_dict({"linear.weight": weight, "linear.bias": torch.zeros(dim)})
    return quantizer


CELLS: dict[str, Cell] = {
    "lfq": Cell("LFQ, 8 bits", SIGN, partial(LFQ, 8), as_it_is),
    "bsq": Cell("BSQ, 8 bits", SIGN, partial(BSQ, 8), as_it_is),
    **{
        f"fsq_{levels}": Cell(f"FSQ [{levels}] x 4, without its tanh", GRID, partial(FSQ, [levels] * 4), as_it_is)
        for levels in (3, 4, 5, 8, 16)
    },
    "fsq_8555": Cell("FSQ [8, 5, 5, 5], without its tanh", "", partial(FSQ, [8, 5, 5, 5]), as_it_is),
    "fsq_8_tanh": Cell("FSQ [8] x 4, white vectors into its tanh", "", partial(FSQ, [8] * 4), as_it_is, bounded=True),
    **{
        f"scalar_{levels}": Cell(f"Lloyd-Max, {levels} levels", SCALAR, partial(scalars, levels))
        for levels in (2, 4, 8, 16)
    },
    "rotated_4": Cell("Lloyd-Max, 4 levels, 4 numbers behind a rotation", "", partial(rotated, 4, 4)),
    **{
        f"book_{dim}_{size}": Cell(
            f"codebook, D = {dim}, K = {size}",
            family,
            partial(book, dim=dim, codebook_size=size),
            seeds=5 if size <= 16 else 1,
        )
        for family, dim, sizes in (
            (PLANE, 2, (4, 16, 64, 256)),
            (FOUR, 4, (16, 256, 1024)),
            (EIGHT, 8, (16, 256, 1024)),
        )
        for size in sizes
    },
    **{
        f"residual_{stages}": Cell(
            f"{stages} residual codebooks, D = 8, K = 256",
            CHAIN,
            partial(ResidualQuantizer, partial(book, dim=8, codebook_size=256), stages),
        )
        for stages in (2, 3, 4)
    },
    "grouped": Cell(
        "2 groups of D = 4, K = 256", "", partial(GroupedQuantizer, partial(book, dim=4, codebook_size=256), 2)
    ),
    **{
        f"random_{size}": Cell(
            f"random codebook, D = 4, K = {size}",
            RANDOM,
            partial(Quantizer, "seeded", dim=4, codebook_size=size),
            as_it_is,
        )
        for size in (16, 256, 4096)
    },
    "multi_scale": Cell(
        "4 scales, 4 x 4 maps, D = 4, K = 256",
        "",
        partial(MultiScaleQuantizer, partial(book, dim=4, codebook_size=256), [1, 2, 3, 4], num_phis=0, channel_dim=1),
        partial(fit_gaussian, rounds=20, samples=2**16),
        positions=(4, 4),
    ),
    **{
        f"method_{name}": Cell(
            f"`{name}`, by its own training",
            METHOD,
            partial(Quantizer, name, dim=METHOD_DIM, codebook_size=METHOD_SIZE),
            learned,
        )
        for name in get_args(Method)
    },
}
"""By their names in the record."""


def main() -> None:
    arguments = measuring_parser(__doc__, again=True).parse_args()
    torch.set_num_threads(1)
    record = load_record(RECORD, again=arguments.again)
    for name, cell in CELLS.items():
        if name not in record.get("cells", {}):
            cells = record.get("cells", {}) | {name: cell.measured()}
            cells = {name: cells[name] for name in CELLS if name in cells}
            record = {"machine": machine(arguments.circumstances), "protocol": PROTOCOL, "cells": cells}
            write_json(RECORD, record)
            print(f"{cell.title}: {cells[name]['distortion']:.4f}", flush=True)
    draw(record["cells"])
    print(table())


PROTOCOL = {
    "numbers": f"{NUMBERS} or more, and at least {2**17} vectors, which nothing was fitted to, seed 0",
    "starts": "seed 1; of codebooks of up to 16 codes the best of seeds 1 to 5, by other vectors",
    "training": f"{STEPS} steps of {BATCH} vectors, Adam at {RATE} with a cosine to 0, from `initialize`, seed 1",
}


def table() -> str:
    """Lines of Markdown: rates, distortion, what the bits are worth and how far the bound is."""
    record = json.loads(RECORD.read_text())
    heads = ["", "bits", "entropy", "distortion", "effective bits", "efficiency", "gap to D(R)", "at the entropy"]
    rows = []
    for name, row in record["cells"].items():
        found = capacity_of(row)
        entropy = "-" if found.entropy_bits is None else f"{found.entropy_bits:.3f}"
        at_entropy = "-" if found.entropy_gap_db is None else f"{found.entropy_gap_db:.2f} dB"
        cells = [CELLS[name].title, f"{found.bits:.3f}", entropy, f"{found.distortion:.4f}"]
        cells += [f"{found.effective_bits:.3f}", f"{found.efficiency:.1%}", f"{found.gap_db:.2f} dB", at_entropy]
        rows.append(cells)
    facts = record["protocol"]
    worst = max(row["standard_error"] / row["distortion"] for row in record["cells"].values())
    caption = (
        f"White Gaussian numbers, {facts['numbers']}; standard errors of the distortions are at most {worst:.1%} of "
        f"them. Fitted codes: {facts['starts']}. Own training: {facts['training']}. {record['machine']}; "
        "`python scripts/gaussian_capacity.py`."
    )
    return captioned(table_lines(heads, rows), caption)


def capacity_of(row: Mapping[str, Any]) -> GaussianCapacity:
    """The result that a row of the record holds."""
    return GaussianCapacity(**{name: row[name] for name in GaussianCapacity.__dataclass_fields__})


def draw(rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Distance to the bound over the nominal bits, a line for each family."""
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    families: dict[str, list[tuple[float, float]]] = {}
    for name, row in rows.items():
        found = capacity_of(row)
        families.setdefault(CELLS[name].family, []).append((found.bits, found.gap_db))
    families.pop("", None)
    for number, (family, points) in enumerate(families.items()):
        bits, gaps = zip(*sorted(points), strict=True)
        axes.plot(bits, gaps, "x" if family == METHOD else "o-", markersize=4, color=f"C{number}", label=family)
    axes.axhline(0, color="black", linewidth=1)
    axes.annotate("Shannon's bound", (4.05, 0.08), ha="right", fontsize=8)
    axes.set(xlabel="nominal bits a dimension", ylabel="distortion over D(R), dB", ylim=(-0.3, 7.5))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncols=2, loc="upper left")
    write_figure(figure, PICTURE)


if __name__ == "__main__":
    main()

"""Every method on the same real patches at the same rate: what is used of the codebook, and what is lost.

    python benchmarks/methods.py                                # writes benchmarks/results/methods.md
    python benchmarks/methods.py --methods vq ema --steps 500

A small network, from patches of 8 x 8 pixels to 16 dimensions and back, is trained around each quantizer, once after
`initialize` and once from the published start. `benchmarks/README.md` says what the columns mean.
"""

import argparse
import math
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from the checkout, installed or not

import torch
from einops import rearrange
from torch import Tensor, nn

from benchmarks.arguments import parse_positive
from benchmarks.machine import circumstances, number, table_row, write
from trainers.image.baselines import PatchKMeans, draw_patches
from trainers.image.comparison import load_photographs
from vqkit import (
    BSQ,
    FSQ,
    LFQ,
    BaseQuantizer,
    CodebookLoss,
    CodebookUsage,
    Commitment,
    DistributionMatching,
    GroupedQuantizer,
    LBGSplitting,
    Quantizer,
    ResidualQuantizer,
    RotationTrick,
)
from vqkit.methods import METHODS

PATCH = 8
DIM = 16
BITS = 10
PHOTOGRAPHS = Path(__file__).resolve().parents[1] / "assets/images"


ema = partial(Quantizer, "ema", dim=DIM, codebook_size=2**BITS)
vq = partial(Quantizer, "vq", dim=DIM, codebook_size=2**BITS)
half = partial(Quantizer, "ema", codebook_size=2 ** (BITS // 2))
matched = [Commitment(), CodebookLoss(), DistributionMatching()]

QUANTIZERS: dict[str, Callable[[], BaseQuantizer]] = {
    **{name: partial(Quantizer, name, dim=DIM, codebook_size=2**BITS) for name in METHODS},
    "ema, maintenance=[]": partial(ema, maintenance=[]),
    "ema, LBGSplitting": partial(ema, maintenance=[LBGSplitting()]),
    "ema, RotationTrick": partial(ema, estimator=RotationTrick()),
    "ema, normalize": partial(ema, normalize=True),
    "vq, RotationTrick": partial(vq, estimator=RotationTrick()),
    "cascaded, Commitment": partial(Quantizer, "cascaded", dim=DIM, codebook_size=2**BITS, losses=[Commitment()]),
    "vq, DistributionMatching": partial(vq, losses=matched),
    "FSQ, 5 dimensions of 4 levels": partial(FSQ, [4] * (BITS // 2), dim=DIM),
    "LFQ, 10 bits": partial(LFQ, BITS, dim=DIM),
    "BSQ, 10 bits": partial(BSQ, BITS, dim=DIM),
    "residual ema, 2 x 32 codes": partial(ResidualQuantizer, partial(half, dim=DIM), 2),
    "grouped ema, 2 x 32 codes": partial(GroupedQuantizer, partial(half, dim=DIM // 2), 2),
}
"""All of 10 bits a patch."""


@dataclass(frozen=True)
class Result:
    """One trained network on the held-out patches."""

    usage: float
    perplexity: float
    psnr: float
    milliseconds: float | None


class Autoencoder(nn.Module):
    """Patches (B, 192) to (B, 16) and back, around a quantizer."""

    def __init__(self, quantizer: BaseQuantizer) -> None:
        super().__init__()
        pixels = 3 * PATCH**2
        self.encoder = nn.Sequential(nn.Linear(pixels, 256), nn.GELU(), nn.Linear(256, DIM))
        self.quantizer = quantizer
        self.decoder = nn.Sequential(nn.Linear(DIM, 256), nn.GELU(), nn.Linear(256, pixels))


def train(
    build: Callable[[], BaseQuantizer], patches: Tensor, *, initialize: bool, steps: int, batch: int, seed: int
) -> tuple[Autoencoder, float]:
    """The trained network, and the median milliseconds of a step."""
    torch.manual_seed(seed)
    model = Autoencoder(build())
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(len(patches), (steps, batch), generator=generator)
    if initialize:
        with torch.no_grad():
            latents = [model.encoder(patches[rows]) for rows in draws[:64]]
        model.quantizer.initialize(latents, seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    times = []
    for rows in draws:
        start = time.perf_counter()
        output = model.quantizer(model.encoder(patches[rows]))
        loss = (model.decoder(output.quantized) - patches[rows]).square().mean() + output.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        times.append(time.perf_counter() - start)
    return model.eval(), 1000 * statistics.median(times)


@torch.no_grad()
def measure(model: Autoencoder, patches: Tensor, milliseconds: float) -> Result:
    """Usage, perplexity and PSNR over all held-out patches."""
    quantizer = model.quantizer
    indices = quantizer.encode(model.encoder(patches))
    error = (model.decoder(quantizer.decode(indices)).clamp(-1, 1) - patches).mul(127.5).square().mean()
    if quantizer.level_axis:  # the pair of indices is one token of 10 bits
        indices = indices[:, 0] * quantizer.codebook_size + indices[:, 1]
    figures = counted(indices)
    return Result(figures["usage"], figures["perplexity"], psnr(float(error)), milliseconds)


def counted(indices: Tensor) -> dict[str, float]:
    """Usage and perplexity of 10-bit tokens."""
    usage = CodebookUsage(2**BITS)
    usage.update(indices)
    return usage.compute()


def psnr(error: float) -> float:
    """Decibels, of a mean squared error on the scale 0 ... 255."""
    return 10 * math.log10(255**2 / error)


def kmeans_of_pixels(photographs: Sequence[Tensor], patches: Tensor, *, count: int, seed: int) -> Result:
    """K-means of the raw patches, the yardstick without a network."""
    baseline = PatchKMeans(photographs, 2**BITS, patch_size=PATCH, num_patches=count, seed=seed)
    pixels = (patches + 1) * 127.5
    image = rearrange(pixels, "n (c p q) -> c p (n q)", p=PATCH, q=PATCH)
    indices = baseline.encode(image)
    error = (baseline.decode(indices) - image).square().mean()
    figures = counted(indices)
    return Result(figures["usage"], figures["perplexity"], psnr(float(error)), None)


def held_out(photographs: Sequence[Tensor]) -> Tensor:
    """All patches of a regular grid, (N, 192) in [-1, 1]."""
    grids = [rearrange(image, "c (h p) (w q) -> (h w) (c p q)", p=PATCH, q=PATCH) for image in photographs]
    return torch.cat(grids) / 127.5 - 1


def report(rows: dict[str, dict[str, Result]], options: argparse.Namespace, load: float, counts: tuple) -> str:
    """The table, its circumstances and its protocol."""
    command = "python benchmarks/methods.py" + (f" --steps {options.steps}" if options.steps != DEFAULT_STEPS else "")
    trained, photographs, patches = counts
    lines = [
        "# Every method on the same patches",
        "",
        *circumstances(command, "cpu", options.threads, load),
        f"- data: {options.patches} patches of 8 x 8 pixels of the {trained} photographs in assets/images/train; "
        f"measured on all {patches} patches of the regular grids of the {photographs} in assets/images/eval, each "
        "decoded from its token alone",
        f"- training: {options.steps} steps of {options.batch} patches, AdamW, 1e-3 to 0 (cosine), squared error of "
        f"pixels in [-1, 1] plus the quantizer's own loss, float32, seed {options.seed}; {2**BITS} codes of {DIM} "
        f"dimensions or what the name says: {BITS} bits a patch, {BITS / PATCH**2:.3f} bits a pixel",
        "- PSNR: of the pooled squared error of all patches, clipped to the range; usage and perplexity: over the same "
        "tokens (a pair of indices is one token)",
        "- step: median of forward, backward and optimizer, with `initialize`",
        "",
        "| | PSNR | usage | perplexity | PSNR, without `initialize` | usage | perplexity | step |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, results in rows.items():
        cells = [name]
        for start in ("initialize", "published start"):
            result = results.get(start)
            cells += (
                [f"{result.psnr:.2f} dB", f"{result.usage:.1%}", f"{result.perplexity:.0f}"] if result else ["-"] * 3
            )
        lines.append(table_row([*cells, f"{number(results['initialize'].milliseconds)} ms".replace("- ms", "-")]))
    return "\n".join([*lines, ""])


DEFAULT_STEPS = 1000


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and measure each quantizer that was asked for, and write the table."""
    parser = argparse.ArgumentParser(prog="methods", description=__doc__.partition("\n")[0])
    parser.add_argument("--methods", nargs="+", choices=list(QUANTIZERS), default=list(QUANTIZERS))
    parser.add_argument("--steps", type=parse_positive, default=DEFAULT_STEPS)
    parser.add_argument("--batch", type=parse_positive, default=1024)
    parser.add_argument("--patches", type=parse_positive, default=2**16, help="to train on; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=parse_positive, default=os.cpu_count())
    output = Path(__file__).parent / "results" / "methods.md"
    parser.add_argument("--output", type=Path, default=output, help="default: benchmarks/results/methods.md")
    options = parser.parse_args(arguments)
    load = os.getloadavg()[0]
    torch.set_num_threads(options.threads)
    training, evaluation = (load_photographs(PHOTOGRAPHS / part, PATCH) for part in ("train", "eval"))
    generator = torch.Generator().manual_seed(options.seed)
    patches = draw_patches(training, options.patches, PATCH, generator) / 127.5 - 1
    unseen = held_out(evaluation)
    rows = {
        "k-means of pixels": {
            "initialize": kmeans_of_pixels(training, unseen, count=options.patches, seed=options.seed)
        }
    }
    for name in options.methods:
        rows[name] = {}
        for start in ("initialize", "published start"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of health: that is what the table is about
                model, milliseconds = train(
                    QUANTIZERS[name],
                    patches,
                    initialize=start == "initialize",
                    steps=options.steps,
                    batch=options.batch,
                    seed=options.seed,
                )
            rows[name][start] = measure(model, unseen, milliseconds)
            print(f"{name:28}{start:18}{rows[name][start]}", flush=True)
    write(options.output, report(rows, options, load, (len(training), len(evaluation), len(unseen))))
    print(f"written: {options.output}")


if __name__ == "__main__":
    main()

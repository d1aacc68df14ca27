"""Measure what is wrong in the reconstructions of runs, and what a blur does to their Fréchet distance and KID.

    python scripts/measure_artifacts.py data/photos/tiles runs/photos_features_again runs/photos_adversarial_late \
      runs/photos_adversarial_blurred --to docs/results/photos-artifacts.json

Of each run: both distances on DINOv2-S, of the reconstructions and of these blurred by a Gaussian of `--sigma` pixels;
the squares with coloured speckle; values at the ends of the range, and those that the decoder puts beyond them; steps
between the patches of the encoder, beside steps within them; and the energy of each band of frequencies. The originals
are measured alike. `DEFINITIONS` says what is counted.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from exchange_detail import BANDS, distance, energies, features, in_batches, squares, squares_parser
from torch import Tensor

from trainers.image import BicubicResize, DINOv2Small, FrechetDistance, GaussianBlur, KernelDistance
from trainers.image.metrics import to_uint8_grid
from vqkit import Tokenizer
from vqkit.backbones.protocol import properties_of
from vqkit.saving.files import write_json

SPECK = 24
"""Levels of 255 by which a speck sticks out; the original does so by less than half of them."""
SPECKS = 1e-3
"""Share of the pixels of a square, from which on it has speckle."""
DEFINITIONS = {
    "specks": f"share of pixels with a channel that, less the mean over channels, differs from the median of its 3 x 3 "
    f"neighbours by more than {SPECK} levels of 255, where the original's differs by less than {SPECK // 2}",
    "speckled": f"share of squares of which at least {SPECKS:.1%} of the pixels are such specks",
    "saturated": "share of values that are 0 or 255 in files",
    "outside": "share of values that the decoder puts beyond [-1, 1], by more than half a level of 255",
    "excess": "by how many levels of 255 these are beyond, in the mean",
    "grid": "mean step between neighbouring pixels of two patches, over that within patches",
    "energy": "of the mean over colours in each of the bands, over that of the originals",
}


@torch.no_grad()
def main() -> None:
    parser = squares_parser(__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders with a tokenizer, of one size of patches")
    arguments = parser.parse_args()
    originals = squares(arguments.images)
    tokenizers = {run.name: Tokenizer.from_pretrained(run / "tokenizer").eval() for run in arguments.runs}
    patches = {name: properties_of(tokenizer.encoder).downsampling_factor for name, tokenizer in tokenizers.items()}
    patch = next(iter(patches.values()))
    if patch is None or set(patches.values()) != {patch}:
        sys.exit(f"sides of the patches are {patches}: name runs of one and the same")

    network = DINOv2Small(resize=BicubicResize(resolution=224))
    real = features(network, originals)
    blur = GaussianBlur(arguments.sigma)
    sets = {}
    for name in ("originals", *tokenizers):
        decoded = originals if name == "originals" else passed_through(tokenizers[name], originals)
        images = decoded.clamp(-1, 1)
        as_they_are = real if name == "originals" else features(network, images)
        blurred = distances(real, features(network, in_batches(blur.blurred, images)))
        sets[name] = artifacts(originals, decoded, patch) | distances(real, as_they_are)
        sets[name] |= {f"{figure}_blurred": distance for figure, distance in blurred.items()}
        print(name, sets[name], flush=True)
    record = {
        "images": len(originals),
        "size": list(originals.shape[-2:]),
        "patch": patch,
        "sigma": arguments.sigma,
        "bands": BANDS,
        "sets": sets,
        "definitions": DEFINITIONS,
        "network": network.record(),
    }
    write_json(arguments.to, record)


def passed_through(tokenizer: Tokenizer, images: Tensor) -> Tensor:
    """What the decoder makes of the codes of images, values beyond [-1, 1] included."""
    return in_batches(lambda batch: tokenizer.decode(tokenizer.encode(batch)), images)


def artifacts(originals: Tensor, decoded: Tensor, patch: int) -> dict[str, Any]:
    """What `DEFINITIONS` says, of what a decoder gives (B, 3, H, W) for originals in [-1, 1]."""
    levels = to_uint8_grid(decoded)
    beyond = (decoded.abs() - 1) * 127.5
    outside = beyond > 0.5
    speckled = specks(to_uint8_grid(originals), levels).flatten(1).float().mean(1)
    return {
        "specks": speckled.mean().item(),
        "speckled": (speckled >= SPECKS).float().mean().item(),
        "saturated": ((levels == 0) | (levels == 255)).float().mean().item(),
        "outside": outside.float().mean().item(),
        "excess": beyond[outside].mean().item() if outside.any() else 0.0,
        "grid": grid(levels, patch),
        "energy": (energies(levels) / energies(to_uint8_grid(originals))).tolist(),
    }


def specks(originals: Tensor, images: Tensor) -> Tensor:
    """(B, H, W) bool: where images (B, 3, H, W) of 256 levels have a speck of colour that their originals do not."""
    theirs, ours = (in_batches(sticking_out, levels) for levels in (originals, images))
    return ((ours > SPECK) & (theirs < SPECK // 2)).any(1)


def sticking_out(images: Tensor) -> Tensor:
    """Like images (B, C, H, W): by how much the colour of a pixel differs from the median of its 3 x 3 neighbours."""
    colour = images - images.mean(1, keepdim=True)
    around = F.pad(colour, [1] * 4, mode="replicate").unfold(2, 3, 1).unfold(3, 3, 1)
    return (colour - around.flatten(-2).median(-1).values).abs()


def grid(images: Tensor, patch: int) -> float:
    """The mean step between neighbours in two patches over that between neighbours in one, along both axes."""
    between, within = [], []
    for axis in (2, 3):
        steps = images.diff(dim=axis).abs().mean(dim=[0, 1, 5 - axis])
        crosses = torch.arange(1, len(steps) + 1) % patch == 0
        between.append(steps[crosses])
        within.append(steps[~crosses])
    return (torch.cat(between).mean() / torch.cat(within).mean()).item()


def distances(real: Tensor, fake: Tensor) -> dict[str, float]:
    """Fréchet distance and KID of two sets of features (B, D)."""
    statistics = FrechetDistance(), KernelDistance()
    return {statistic.figures[0]: distance(statistic, real, fake) for statistic in statistics}


if __name__ == "__main__":
    main()

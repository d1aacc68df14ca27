"""Plain vectors into semantic IDs, as recommenders use them, with a report of collisions.

    python examples/vectors.py                       # about half a minute on two CPU cores
    python examples/vectors.py --levels 4 --codebook-size 128 --output ids.safetensors

Every item is a vector; its semantic ID is the tuple of indices of a residual quantizer, coarse first, so that similar
items share a prefix. Two items with the same tuple collide. The items here are the 16 x 16 patches of the photographs
in `assets`, described by their low-frequency cosine transform: real, skewed, and with near duplicates (sky, water), as
catalogues have them. For your own, replace `patch_features` by the embeddings of your items. Beside it: k-means on
every level's residual, the usual baseline.

Source: Rajput et al. 2023, "Recommender Systems with Generative Retrieval" (TIGER, arXiv:2305.05065), sec. 3.1, for
semantic IDs by residual quantization, and the suffix that tells colliding items apart.
Differs: no encoder in front of the quantizer. So expect it to equal k-means; what it adds is that it learns from a
stream of batches.
"""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from the checkout, installed or not

import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import normalize

from vqkit import CodebookUsage, Quantizer, ResidualQuantizer
from vqkit.kernels import nearest
from vqkit.kmeans import kmeans
from vqkit.saving.files import write_whole

ROOT = Path(__file__).resolve().parents[1]
PATCH = 16
FREQUENCIES = 6  # coefficients u, v with u + v < 6 are kept: 21 for each of 3 colour channels


def patch_features(folder: Path) -> Tensor:
    """(M, 63) of unit length: the signed square roots of the low-frequency cosine transform of each patch in YCbCr.

    Source: Perronnin, Sánchez, Mensink 2010, "Improving the Fisher kernel for large-scale image classification",
    sec. 3.2 (the square root tames features of heavy tails, of which a few would fill a codebook).
    """
    frequency, place = torch.arange(PATCH)[:, None], torch.arange(PATCH)[None]
    basis = torch.cos(math.pi / PATCH * (place + 0.5) * frequency) * math.sqrt(2 / PATCH)
    basis[0] /= math.sqrt(2)
    kept = (frequency + place < FREQUENCIES).flatten()
    features = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in Image.registered_extensions():
            continue
        with Image.open(path) as picture:
            picture = picture.convert("YCbCr")
        pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
        pixels = pixels.view(picture.height, picture.width, 3)
        patches = pixels.permute(2, 0, 1).float().unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH)  # (3, h, w, 16, 16)
        transformed = basis @ patches @ basis.T
        features.append(transformed.permute(1, 2, 0, 3, 4).reshape(-1, 3, PATCH**2)[..., kept].flatten(1))
    if not features:
        raise SystemExit(f"{folder} holds no picture: give a folder of JPEG or PNG files")
    items = torch.cat(features)
    items = (items - items.mean(0)) / items.std(0).clamp(min=1e-6)
    return normalize(items.sign() * items.abs().sqrt(), dim=-1)


def train(quantizer: ResidualQuantizer, items: Tensor, steps: int, batch_size: int, seed: int) -> None:
    """Codes follow running means of the items that choose them: there is nothing for an optimizer to do."""
    quantizer.initialize([items], seed=seed)
    generator = torch.Generator().manual_seed(seed)
    quantizer.train()
    for number in range(1, steps + 1):
        batch = items[torch.randint(len(items), (batch_size,), generator=generator)]
        output = quantizer(batch)
        if number % max(1, steps // 5) == 0:
            error = (output.quantized.detach() - batch).square().mean().item()
            print(f"step {number:5d}  squared error {error:.4f}", flush=True)
    quantizer.step()  # the statistics of the last batch
    quantizer.eval()


def residual_kmeans(items: Tensor, codebook_size: int, levels: int, seed: int) -> tuple[Tensor, Tensor]:
    """The baseline: k-means on what the levels before left over. IDs (M, levels) and reconstructions (M, D)."""
    residual, indices = items, []
    for level in range(levels):
        centers = kmeans(residual, codebook_size, iterations=25, seed=seed + level).centers
        indices.append(nearest(residual, centers).indices)
        residual = residual - centers[indices[-1]]
    return torch.stack(indices, -1), items - residual


def collisions(semantic_ids: Tensor) -> dict[str, float]:
    """How well tuples (M, levels) tell items apart.

    Returns:
        unique: share of the items whose tuple no other item has.
        distinct: tuples in use for each item, 1 if no two collide.
        largest_group: most items with one tuple; a suffix of that many values after the tuple makes every item unique.
    """
    counts = torch.unique(semantic_ids, dim=0, return_counts=True)[1]
    return {
        "unique": (counts == 1).sum().item() / len(semantic_ids),
        "distinct": len(counts) / len(semantic_ids),
        "largest_group": float(counts.max()),
    }


def report(
    name: str, items: Tensor, semantic_ids: Tensor, reconstructions: Tensor, codebook_size: int
) -> dict[str, float]:
    """Print the figures of one way to make IDs, and return them."""
    levels = semantic_ids.shape[-1]
    figures = collisions(semantic_ids)
    figures["error"] = ((reconstructions - items).square().mean() / (items - items.mean(0)).square().mean()).item()
    print(
        f"{name:20s} unique {figures['unique']:.2%}  distinct {figures['distinct']:.2%}  "
        f"largest group {figures['largest_group']:.0f}  variance lost {figures['error']:.2%}"
    )
    for level in range(levels):
        usage = CodebookUsage(codebook_size)
        usage.update(semantic_ids[:, level])
        codes = usage.compute()
        shared = collisions(semantic_ids[:, : level + 1])
        print(
            f"    level {level + 1}: usage {codes['usage']:.1%}  perplexity {codes['perplexity']:.0f} of "
            f"{codebook_size}  unique up to here {shared['unique']:.2%}"
        )
    return figures


def main(arguments: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Quantize the items in both ways; the figures of each."""
    parser = argparse.ArgumentParser(prog="vectors", description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=Path, default=ROOT / "assets/images/train", help="folder of pictures")
    parser.add_argument("--levels", type=int, default=3)
    parser.add_argument("--codebook-size", type=int, default=256, help="codes of each level")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="write the IDs (M, levels) to this safetensors file")
    options = parser.parse_args(arguments)

    start = time.monotonic()
    items = patch_features(options.images)
    print(
        f"{len(items)} items of {items.shape[1]} dimensions; {options.levels} levels of {options.codebook_size} codes, "
        f"{options.levels * math.log2(options.codebook_size):.0f} bits an item"
    )
    # No restarts: k-means starts every code on items that do not move. Behind an encoder that learns, leave them on.
    stage = partial(Quantizer, "ema", dim=items.shape[1], codebook_size=options.codebook_size, maintenance=[])
    quantizer = ResidualQuantizer(stage, options.levels)
    train(quantizer, items, options.steps, options.batch_size, options.seed)
    semantic_ids = quantizer.encode(items)
    baseline_ids, baseline = residual_kmeans(items, options.codebook_size, options.levels, options.seed)
    decoded = quantizer.decode(semantic_ids)
    figures = {
        "residual": report("residual quantizer", items, semantic_ids, decoded, options.codebook_size),
        "kmeans": report("k-means per level", items, baseline_ids, baseline, options.codebook_size),
    }
    suffix = max(1, math.ceil(math.log2(figures["residual"]["largest_group"])))
    print(f"a suffix of {suffix} bits after the residual quantizer's tuple makes every item unique")
    print(f"({time.monotonic() - start:.0f} s)")
    if options.output:
        write_whole(options.output, save({"semantic_ids": semantic_ids.contiguous()}))
        print(f"written: {options.output}")
    return figures


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"error: {error}")

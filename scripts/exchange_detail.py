"""Measure what the fine detail of reconstructions does to their KID, by exchanging it between runs and originals.

    python scripts/exchange_detail.py data/photos/tiles runs/photos_tuned_adversarial runs/photos_tuned --every 2 \
      --to docs/results/photos-detail.json

A reconstruction is its blurred form (a Gaussian of `--sigma` pixels) and the detail that the blur takes away. With the
detail of the originals it says how much of the distance perfect detail could win; with that of the other run, whether
detail alone makes the two differ. The energy of each band of frequencies, beside that of the originals, says how much
detail there is.
"""

import argparse
import itertools
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from first_run import of_run
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.functional import gaussian_blur

from trainers.image import BicubicResize, DINOv2Small, KernelDistance
from trainers.image.measures.statistics import TwoSampleDistance
from trainers.image.metrics import to_uint8_grid
from vqkit.saving.files import write_json

BANDS = (0, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Edges in cycles a pixel."""
BATCH = 10


@torch.no_grad()
def main() -> None:
    parser = squares_parser(__doc__)
    parser.add_argument("run", type=Path, help="run folder with a tokenizer, whose detail is in question")
    parser.add_argument("other", type=Path, help="run folder that it is compared with")
    parser.add_argument("--every", type=int, default=1, help="take every n-th image")
    arguments = parser.parse_args()
    originals = squares(arguments.images, every=arguments.every)
    run, other = (reconstructed(folder, originals) for folder in (arguments.run, arguments.other))

    def blurred(images: Tensor) -> Tensor:
        return gaussian_blur(images, 2 * round(3 * arguments.sigma) + 1, arguments.sigma)

    network = DINOv2Small(resize=BicubicResize(resolution=224))
    real = features(network, originals)
    sets = {arguments.run.name: run, arguments.other.name: other, "originals": originals}
    compared = {name: images for name, images in sets.items() if images is not originals}
    compared |= {f"{name}, blurred": blurred(images) for name, images in sets.items()}
    for (name, images), (source, donor) in itertools.permutations(sets.items(), 2):
        if images is not originals:
            compared[f"{name}, with the detail of {source}"] = blurred(images) + donor - blurred(donor)
    distances = {}
    for name, images in compared.items():
        distances[name] = distance(KernelDistance(), real, features(network, images))
        print(f"{name}: KID {distances[name]:.3f}", flush=True)
    expected = energies(originals)
    record = {
        "images": len(originals),
        "size": list(originals.shape[-2:]),
        "sigma": arguments.sigma,
        "kernel_distance": distances,
        "energy": {name: (energies(images) / expected).tolist() for name, images in list(sets.items())[:2]},
        "bands": BANDS,
        "network": network.record(),
    }
    write_json(arguments.to, record)


def squares_parser(description: str) -> argparse.ArgumentParser:
    """The arguments of what measures reconstructions of squares, and these blurred."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="folder of PNGs of one size, as scripts/cut_tiles.py writes them")
    parser.add_argument("--sigma", type=float, default=1.0, help="of the blur, pixels")
    parser.add_argument("--to", type=Path, required=True, help="JSON to write")
    return parser


def squares(folder: Path, *, every: int = 1) -> Tensor:
    """(B, 3, H, W) in [-1, 1], every n-th of a folder.

    Raises:
        SystemExit: there are fewer than two.
    """
    files = sorted(folder.glob("*.png"))[::every]
    if len(files) < 2:
        sys.exit(f"{folder} holds {len(files)} PNGs: cut photographs by scripts/cut_tiles.py first")
    return torch.stack([decode_image(str(file), ImageReadMode.RGB) for file in files]) / 127.5 - 1


def reconstructed(folder: Path, images: Tensor) -> Tensor:
    """What the tokenizer of a run makes of images in [-1, 1], not yet rounded."""
    tokenizer = of_run(folder)
    return in_batches(lambda batch: tokenizer.decode(tokenizer.encode(batch)).clamp(-1, 1), images)


def features(network: Callable[[Tensor], list[Tensor]], images: Tensor) -> Tensor:
    """(B, D) of images as they would be in files."""
    return in_batches(lambda batch: network(to_uint8_grid(batch) / 127.5 - 1)[0], images)


def in_batches(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    return torch.cat([function(batch) for batch in images.split(BATCH)])


def distance(statistic: TwoSampleDistance, real: Tensor, fake: Tensor) -> float:
    """That of two sets of features (B, D)."""
    statistic.reset(real.shape[1], real.device)
    statistic.update(real, fake, torch.arange(len(real)) % 2)
    return statistic.compute()[statistic.figures[0]]


def energies(images: Tensor) -> Tensor:
    """Energy of the mean over colours in each of `BANDS`, summed over images, behind a Hann window."""
    gray = images.mean(1)
    height, width = gray.shape[-2:]
    window = torch.outer(torch.hann_window(height), torch.hann_window(width))
    spectrum = torch.fft.fft2((gray - gray.mean((1, 2), keepdim=True)) * window).abs().square().sum(0)
    radius = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)[None, :])
    return torch.stack([spectrum[(radius > low) & (radius <= high)].sum() for low, high in itertools.pairwise(BANDS)])


if __name__ == "__main__":
    main()

"""Perceptual distances of each reconstruction from its original."""

from typing import Any

import torch
from torch import Tensor

from trainers.image.measures.measure import ImageMeasure
from trainers.image.objectives.lpips import LPIPS
from vqkit.distributed import all_reduce_sum
from vqkit.precision import widest_dtype


class PerceptualMeasure(ImageMeasure):
    """A distance of the kind of LPIPS, of each image, then the mean over images.

    Args:
        distance: LPIPS or ST-LPIPS; its weight does not matter.
        name: with which the figure's begins: `vgg` gives `vgg_lpips`.

    Raises:
        ValueError: see `ImageMeasure`.
    """

    def __init__(self, distance: LPIPS, *, name: str) -> None:
        super().__init__(name)
        self.figure = f"{name}_lpips"
        self.distance = distance
        self.reset(torch.device("cpu"))

    def reset(self, device: torch.device) -> None:
        """See `ImageMeasure`."""
        with torch.inference_mode(False):  # else what is moved could not be used outside of it
            self.distance.to(device)
        self.sums = torch.zeros(2, dtype=widest_dtype(device), device=device)  # of the distances, and how many

    @torch.no_grad()
    def update(self, originals: Tensor, reconstructions: Tensor, groups: Tensor) -> dict[str, Tensor]:
        """See `ImageMeasure`."""
        distances = self.distance.of_each(originals, reconstructions)
        self.sums += torch.stack([distances.to(self.sums).sum(), torch.ones_like(distances).sum().to(self.sums)])
        return {self.figure: distances}

    def compute(self) -> dict[str, float]:
        """See `ImageMeasure`."""
        total, count = all_reduce_sum(self.sums).tolist()
        if not count:
            raise ValueError(f"{self.figure}: no images were measured")
        return {self.figure: total / count}

    def protocol(self, *, halves: str) -> dict[str, Any]:
        """See `ImageMeasure`."""
        definition = f"{type(self.distance).__name__} of each image, then the mean over images"
        facts = {"definition": definition, "heads_sha256": self.distance.heads_sha256}
        return facts | self.distance.network.record()

"""Differentiable augmentation of images in front of discriminators."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.core.regularization import Augmentation
from vqkit.distributed import joined_positions, open_uniform


class Transformation(ABC):
    """One change of images, made from uniform random numbers.

    Attributes:
        numbers: how many it takes for each image.
    """

    numbers: ClassVar[int]

    @abstractmethod
    def apply(self, images: Tensor, uniform: Tensor) -> Tensor:
        """Images (B, C, H, W) and numbers (B, `numbers`) in (0, 1) -> (B, C, H, W), differentiable in the images."""


class Color(Transformation):
    """Brightness moves by up to 0.5, saturation is multiplied by 0 to 2, then contrast by 0.5 to 1.5."""

    numbers = 3

    def apply(self, images: Tensor, uniform: Tensor) -> Tensor:
        """The three changes one after another; values may leave [-1, 1], as published."""
        brightness, saturation, contrast = uniform.to(images.dtype)[:, :, None, None, None].unbind(1)
        images = images + (brightness - 0.5)
        gray = images.mean(1, keepdim=True)
        images = gray + (images - gray) * (2 * saturation)
        mean = images.mean((1, 2, 3), keepdim=True)
        return mean + (images - mean) * (contrast + 0.5)


class Translation(Transformation):
    """Shifts by whole pixels, up to a share of each side, in both directions; what comes in is 0.

    Args:
        ratio: of a side, in [0, 1]; 1/8 as published.

    Raises:
        ValueError: `ratio` is out of its range.
    """

    numbers = 2

    def __init__(self, ratio: float = 0.125) -> None:
        self.ratio = _share(ratio)

    def apply(self, images: Tensor, uniform: Tensor) -> Tensor:
        """Pixel i is taken from i + shift."""
        for axis, number in zip((2, 3), uniform.unbind(1), strict=True):
            side = images.shape[axis]
            reach = int(side * self.ratio + 0.5)
            shift = (number * (2 * reach + 1)).long() - reach
            source = torch.arange(side, device=images.device) + shift[:, None]
            source = source[:, None, :, None] if axis == 2 else source[:, None, None, :]
            inside = (source >= 0) & (source < side)
            images = images.gather(axis, source.clamp(0, side - 1).expand_as(images)) * inside
        return images


class Cutout(Transformation):
    """A rectangle of a share of both sides becomes 0; its centre is anywhere in the image.

    Args:
        ratio: of the sides, in [0, 1]; 1/2 as published.

    Raises:
        ValueError: `ratio` is out of its range.
    """

    numbers = 2

    def __init__(self, ratio: float = 0.5) -> None:
        self.ratio = _share(ratio)

    def apply(self, images: Tensor, uniform: Tensor) -> Tensor:
        """Rows and columns from centre - size // 2 on."""
        covered = []
        for side, number in zip(images.shape[2:], uniform.unbind(1), strict=True):
            size = int(side * self.ratio + 0.5)
            first = (number * (side + 1 - size % 2)).long()[:, None] - size // 2
            place = torch.arange(side, device=images.device)
            covered.append((place >= first) & (place < first + size))
        rows, columns = covered
        return images * ~(rows[:, None, :, None] & columns[:, None, None, :])


class DiffAugment(Augmentation):
    """Random changes of originals and reconstructions that gradients pass through, so that the generator is not taught
    to make them.

    A reconstruction is changed by the numbers of its original. They are a function of the seed, of the count of calls,
    which checkpoints keep, and of the image's place in the batch of all processes: a resumed run draws as one that was
    not stopped, and N processes draw as one with the joined batch. Costs no pass.

    Source: Zhao et al. 2020 (arXiv:2006.10738), sec. 3.3, with the ranges of its code.
    Differs: its code draws for each image alone. Here image and reconstruction are a pair, and comparing the
        discriminator's features of both needs one draw; each side by itself has the published distribution.

    Args:
        transformations: one after another; None is `Color()`, `Translation()`, `Cutout()`, as published
            (`color,translation,cutout`).
        seed: of the draws.

    Raises:
        ValueError: `transformations` is empty.
    """

    calls: Tensor

    def __init__(self, transformations: Sequence[Transformation] | None = None, *, seed: int = 0) -> None:
        super().__init__()
        if transformations is not None and not transformations:
            raise ValueError("transformations is empty: name at least one, or leave the augmentation out")
        self.transformations = transformations or (Color(), Translation(), Cutout())
        self.seed = seed
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, reference: Tensor, reconstruction: Tensor) -> tuple[Tensor, Tensor]:
        """Both (B, C, H, W), changed alike."""
        counts = [transformation.numbers for transformation in self.transformations]
        places = joined_positions(len(reference), reference.device)[:, None] * sum(counts)
        places = places + torch.arange(sum(counts), device=places.device)
        uniform = open_uniform(places, seed=self.seed, step=self.calls)
        if self.training:
            self.calls += 1
        for transformation, numbers in zip(self.transformations, uniform.split(counts, dim=1), strict=True):
            reference = transformation.apply(reference, numbers)
            reconstruction = transformation.apply(reconstruction, numbers)
        return reference, reconstruction


class GaussianBlur(Augmentation):
    """Blurs originals and reconstructions alike: discriminators judge what is left, and ask for no finer detail.

    What the blur takes away is not judged, so the objectives alone decide on it. Borders are reflected. Costs no pass.

    Source: Karras et al. 2021 (StyleGAN3, arXiv:2106.12423), config R.
    Differs: there it fades from 10 pixels to none within the first 200 thousand images, lest the discriminator look at
        fine detail too early; here it stays, unless a schedule moves `adversary.augmentation.sigma`.

    Args:
        sigma: standard deviation, pixels, at least 0; the kernel ends at 3 of them. 0 changes nothing.

    Raises:
        ValueError: `sigma` is out of its range; in `forward` if it ends beyond the other border of the images.
    """

    def __init__(self, sigma: float) -> None:
        super().__init__()
        if not 0 <= sigma < float("inf"):
            raise ValueError(f"sigma={sigma}: expected a number of pixels of at least 0")
        self.sigma = sigma

    def forward(self, reference: Tensor, reconstruction: Tensor) -> tuple[Tensor, Tensor]:
        """Both (B, C, H, W), blurred alike."""
        return self.blurred(reference), self.blurred(reconstruction)

    def blurred(self, images: Tensor) -> Tensor:
        """(B, C, H, W) of the same shape."""
        reach = math.ceil(3 * self.sigma)
        if reach == 0:
            return images
        if reach >= min(images.shape[-2:]):
            raise ValueError(
                f"images have shape {tuple(images.shape)}: expected sides of more than {reach} pixels, where a blur of "
                f"sigma={self.sigma} ends; use larger images, or a smaller sigma"
            )
        places = torch.arange(-reach, reach + 1, device=images.device, dtype=torch.float32)
        kernel = (-0.5 * (places / self.sigma).square()).exp()
        channels = images.shape[1]
        kernel = (kernel / kernel.sum()).to(images.dtype).expand(channels, 1, -1)
        padded = F.pad(images, [reach] * 4, mode="reflect")
        return F.conv2d(F.conv2d(padded, kernel[:, :, None], groups=channels), kernel[:, :, :, None], groups=channels)


def _share(ratio: float) -> float:
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio={ratio}: expected a share of the side, in [0, 1]")
    return ratio

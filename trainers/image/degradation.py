"""What is done to pictures that a tokenizer shall restore."""

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqkit.distributed import counter_random, joined_positions


class Degradation(nn.Module, ABC):
    """Makes of pictures those that are encoded in their place.

    What it gives has the size of the original, and is what one would show without a model.
    """

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] to the same."""


class Downscaling(Degradation):
    """A picture of 1 / factor of both sides, of 8 bits, made large again by bicubic interpolation: super-resolution.

    Args:
        factor: whole, at least 2; sides are multiples of it.

    Source: the usual degradation of super-resolution; AdaCode (Liu et al. 2023, arXiv:2306.06513) has those of real
    pictures besides.
    Differs: AdaCode encodes the small picture by an encoder with fewer strides; here it has its size again.

    Raises:
        ValueError: `factor` is no such number; in `forward` if it does not divide the sides.
    """

    def __init__(self, factor: int = 4) -> None:
        super().__init__()
        if factor < 2 or factor != int(factor):
            raise ValueError(f"factor={factor}: expected a whole number of at least 2")
        self.factor = int(factor)

    def forward(self, images: Tensor) -> Tensor:
        """Both ways bicubic, antialiased on the way down."""
        sides = images.shape[-2:]
        if any(side % self.factor for side in sides):
            raise ValueError(f"images have {sides[0]} x {sides[1]} pixels: expected multiples of {self.factor}")
        smaller = tuple(side // self.factor for side in sides)
        small = F.interpolate(images, size=smaller, mode="bicubic", antialias=True)
        small = ((small + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1
        return F.interpolate(small, size=sides, mode="bicubic", align_corners=False).clamp(-1, 1)

    def extra_repr(self) -> str:
        """The factor."""
        return f"factor={self.factor}"


class Holes(Degradation):
    """Squares of a grid are lost, and filled with the mean of what is left of their picture: inpainting.

    In training each picture loses other squares, by a count of calls that checkpoints keep and by its place in the
    batch of all processes. Outside of training all lose the same ones, whatever batch they come in.

    Args:
        share: probability that a square is lost, in (0, 1).
        side: of a square, in pixels.
        seed: of the draws.

    Source: squares instead of the strokes of AdaCode (Liu et al. 2023, arXiv:2306.06513).

    Raises:
        ValueError: an argument is out of its range.
    """

    calls: Tensor

    def __init__(self, share: float = 0.25, side: int = 16, *, seed: int = 0) -> None:
        super().__init__()
        if not 0 < share < 1:
            raise ValueError(f"share={share}: expected a probability in (0, 1)")
        if side < 1 or side != int(side):
            raise ValueError(f"side={side}: expected the pixels of a square's side, a whole number")
        self.share, self.side, self.seed = share, int(side), seed
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, images: Tensor) -> Tensor:
        """What is lost gets the mean of the rest, of each channel."""
        lost = self.draw(images)
        left = (~lost).to(images.dtype)
        mean = (images * left).sum((2, 3), keepdim=True) / left.sum((2, 3), keepdim=True).clamp(min=1)
        return torch.where(lost, mean, images)

    def draw(self, images: Tensor) -> Tensor:
        """(B, 1, H, W) bool, which pixels are lost; counts a call in training."""
        height, width = images.shape[-2:]
        rows, columns = math.ceil(height / self.side), math.ceil(width / self.side)
        places = joined_positions(len(images), images.device)
        step: Tensor | int = self.calls + 1
        if not self.training:
            places, step = torch.zeros_like(places), 0
        places = places[:, None] * (rows * columns) + torch.arange(rows * columns, device=images.device)
        lost = (counter_random(places, seed=self.seed, step=step) < self.share).reshape(-1, 1, rows, columns)
        if self.training:
            self.calls += 1
        lost = lost.repeat_interleave(self.side, 2).repeat_interleave(self.side, 3)
        return lost[..., :height, :width]

    def extra_repr(self) -> str:
        """Share and side."""
        return f"share={self.share}, side={self.side}, seed={self.seed}"

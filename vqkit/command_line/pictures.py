"""Pictures of any size as files of indices, large ones tile by tile."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy
import torch
from torch import Tensor

from vqkit.backbones.protocol import properties_of
from vqkit.bitstream.container import Picture
from vqkit.command_line.medium import NOT_NUMBERS, Coded, Medium
from vqkit.media import pictures
from vqkit.tokenizers.tiling import Tiles
from vqkit.tokenizers.tokenizer import Tokenizer

TILE_SIZE, OVERLAP = 2048, 128


class Pictures(Medium[numpy.ndarray]):
    """RGB pictures, filled up at right and bottom with their last pixels to multiples of the downsampling factor.

    Where the encoder takes one size alone, pictures of other sizes are refused, or cropped.

    Args:
        tokenizer: of pictures.
        batch_size: see `Medium`.
        tile_size: side of the tiles of larger pictures, in pixels; None: about 2048. Where patches have no indices of
            their own, or the encoder takes one size alone, all pictures are encoded whole.
        overlap: of tiles, see `vqkit.Tiles`; None: about 128.
        white: see `vqkit.media.pictures.read`.
        max_pixels: see there.
        crop: whether pictures are shrunk so that the shorter side has that one size, and the middle is taken.

    Raises:
        ValueError: the tokenizer takes no RGB pictures, or values without a range, or tiles of other sizes; or `crop`
            is asked for, and it takes any size.
    """

    ending = ".png"
    unit = "bits/pixel"

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        batch_size: int,
        tile_size: int | None = None,
        overlap: int | None = None,
        white: float | None = None,
        max_pixels: int | None = None,
        crop: bool = False,
    ) -> None:
        super().__init__(tokenizer, batch_size=batch_size)
        channels = getattr(tokenizer.encoder, "in_channels", 3)
        if channels != 3 or tokenizer.value_range is None:
            raise ValueError(
                f"this tokenizer takes {channels} channels in value_range={tokenizer.value_range}: expected 3, red, "
                "green and blue, in a range"
            )
        self.least, self.greatest = tokenizer.value_range
        self.white, self.max_pixels = white, max_pixels or pictures.MAX_PIXELS
        own = properties_of(tokenizer.encoder)
        factor, self.image_size = own.downsampling_factor, own.image_size
        if crop and self.image_size is None:
            raise ValueError("--crop: this tokenizer names no one size that it takes; leave it out")
        self.shorter_side = self.image_size if crop else None
        self.factor = factor or 1
        self.tiles: Tiles | None = None
        if self.image_size is None and factor and tokenizer.quantizer.index_per_position:
            size, kept = (-(-pixels // factor) * factor for pixels in (TILE_SIZE, OVERLAP))
            self.tiles = Tiles(tile_size or size, overlap=kept if overlap is None else overlap)
            self.tiles.factor(tokenizer)

    @property
    def suffixes(self) -> Collection[str]:
        """See `Medium`."""
        return pictures.suffixes()

    def load(self, path: Path) -> numpy.ndarray:
        """(height, width, 3) uint8."""
        image = pictures.read(path, shorter_side=self.shorter_side, white=self.white, max_pixels=self.max_pixels)
        size, height, width = self.image_size, *image.shape[:2]
        if self.shorter_side is not None:
            top, left = (max(0, side - self.shorter_side) // 2 for side in image.shape[:2])
            image = image[top : top + self.shorter_side, left : left + self.shorter_side]
        if size is not None and image.shape[:2] != (size, size):
            raise ValueError(
                f"has {width} x {height} pixels: this tokenizer takes pictures of {size} x {size} "
                f"alone; {'enlarge it' if self.shorter_side else 'give --crop, or resize it'}"
            )
        return image

    def alike(self, loaded: numpy.ndarray) -> tuple[int, ...]:
        """The size that is encoded."""
        return tuple(side + -side % self.factor for side in loaded.shape[:2])

    @torch.no_grad()
    def encode(self, batch: Sequence[numpy.ndarray]) -> list[Coded]:
        """See `Medium`."""
        height, width = self.alike(batch[0])
        images = torch.stack(
            [
                torch.from_numpy(
                    numpy.pad(image, ((0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0)), mode="edge")
                )
                for image in batch
            ]
        )
        data = images.movedim(-1, 1).to(self.device, torch.float32) / 255 * (self.greatest - self.least) + self.least
        indices = self.tokenizer.encode(data) if self.tiles is None else self.tiles.encode(self.tokenizer, data)
        extents = [Picture(image.shape[0], image.shape[1]) for image in batch]
        return [Coded(one[None].cpu(), extent) for one, extent in zip(indices, extents, strict=True)]

    def check_writable(self, target: Path) -> None:
        """See `Medium`."""
        pictures.check_writable(target)

    def write(self, batch: Sequence[Coded], targets: Sequence[Path]) -> Iterator[Path]:
        """See `Medium`."""
        for pixels, target in zip(self.decode(batch), targets, strict=True):
            pictures.write(target, pixels)
            yield target

    @torch.no_grad()
    def decode(self, batch: Sequence[Coded]) -> Iterator[numpy.ndarray]:
        """The pictures (height, width, 3) uint8 of indices of one shape, each as large as its original.

        Raises:
            ValueError: see `Medium.write`.
        """
        indices = torch.cat([coded.indices for coded in batch]).to(self.device)
        images = self.tokenizer.decode(indices) if self.tiles is None else self.tiles.decode(self.tokenizer, indices)
        height, width = images.shape[-2:]
        for image, coded in zip(images, batch, strict=True):
            extent = coded.extent
            if not isinstance(extent, Picture) or not (0 < extent.height <= height and 0 < extent.width <= width):
                raise ValueError(f"says that it holds {extent}, and its indices stand for {width} x {height} pixels")
            if image.isnan().any():
                raise ValueError(NOT_NUMBERS)
            yield self._pixels(image)[: extent.height, : extent.width]

    def _pixels(self, image: Tensor) -> numpy.ndarray:
        """(3, H, W) in the tokenizer's range to (H, W, 3) uint8; clipped, never wrapped."""
        share = (image.float() - self.least) / (self.greatest - self.least)
        return (share.clamp(0, 1) * 255).round().byte().movedim(0, -1).cpu().numpy()

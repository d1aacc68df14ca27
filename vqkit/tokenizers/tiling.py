"""Large pictures in bounded memory: a tokenizer run over them tile by tile."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqkit.backbones.protocol import properties_of

if TYPE_CHECKING:
    from vqkit.tokenizers.tokenizer import Tokenizer


class Tiles:
    """Encodes and decodes pictures in tiles of one size, whose tokens are one grid.

    Neighbouring tiles share twice the overlap, and each drops its outer half of that; the last tile of a row or column
    is moved back to end at the edge of the picture. Where no output depends on inputs that are further away than the
    overlap, the tokens are those of the whole picture; attention and norms over space see the whole tile.

    Args:
        size: side of a tile, in pixels, a multiple of the tokenizer's downsampling factor; smaller pictures are one
            tile.
        overlap: pixels at the inner edges of a tile of which the tokens are dropped, a multiple of that factor below
            half of the size; 0 sets tile beside tile.

    Raises:
        ValueError: `size` or `overlap` is out of range.
    """

    def __init__(self, size: int, *, overlap: int = 0) -> None:
        if size < 1:
            raise ValueError(f"size={size}: expected at least 1 pixel, such as the resolution of the training")
        if not 0 <= 2 * overlap < size:
            raise ValueError(f"overlap={overlap}: expected at least 0 pixels, and less than half of size={size}")
        self.size = size
        self.overlap = overlap

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.size}, overlap={self.overlap})"

    def factor(self, tokenizer: "Tokenizer") -> int:
        """Pixels on a side of what a token stands for, with which the tiles must agree.

        Raises:
            ValueError: the encoder does not say it, takes one size alone, `size` or `overlap` is no multiple of it, or
                patches have no indices of their own.
        """
        own = properties_of(tokenizer.encoder)
        factor = own.downsampling_factor
        if own.image_size is not None:
            raise ValueError(
                f"encoder={type(tokenizer.encoder).__name__} takes pictures of {own.image_size} x {own.image_size} "
                "pixels, and its tokens are no grid of patches that tiles could be joined by: encode each picture as a "
                "whole, cropped or resized to that size"
            )
        if factor is None:
            raise ValueError(
                f"encoder={type(tokenizer.encoder).__name__} has no downsampling_factor, by which tokens are joined: "
                "encode whole pictures, or give it one"
            )
        if not tokenizer.quantizer.index_per_position:
            raise ValueError(
                f"quantizer={type(tokenizer.quantizer).__name__} has no index for each patch, and tiles are joined "
                "patch by patch: encode whole pictures"
            )
        for name, value in (("size", self.size), ("overlap", self.overlap)):
            if value % factor:
                raise ValueError(f"tiles {name}={value}: expected a multiple of the downsampling factor, {factor}")
        return factor

    def encode(self, tokenizer: "Tokenizer", images: Tensor) -> Tensor:
        """The tokens of pictures of one size.

        Args:
            tokenizer: of pictures, whose tokens are a grid.
            images: (B, C, H, W), H and W multiples of its downsampling factor f.

        Returns:
            (B, H / f, W / f[, levels]) int64.

        Raises:
            ValueError: sizes are not so.
        """
        factor = self.factor(tokenizer)
        height, width = images.shape[-2:]
        if height % factor or width % factor:
            raise ValueError(f"images of {width}x{height} pixels: expected multiples of {factor}; crop or pad them")

        def encoded(top: int, bottom: int, left: int, right: int) -> Tensor:
            tokens = tokenizer.encode(images[..., top * factor : bottom * factor, left * factor : right * factor])
            if tokens.shape[1:3] != (bottom - top, right - left):
                raise ValueError(
                    f"a tile of {bottom - top} x {right - left} patches has tokens of shape {tuple(tokens.shape[1:])}: "
                    "only tokens that are a grid of patches can be joined"
                )
            return tokens

        return self._joined(height // factor, width // factor, factor, encoded, dims=(1, 2))

    def decode(self, tokenizer: "Tokenizer", indices: Tensor) -> Tensor:
        """The pictures of tokens, tile by tile.

        Args:
            tokenizer: that made the tokens.
            indices: (B, h, w[, levels]) int64.

        Returns:
            (B, C, h * f, w * f), f the downsampling factor.

        Raises:
            ValueError: the indices are no grid, or the decoder makes other sizes of them.
        """
        factor = self.factor(tokenizer)
        if indices.ndim != 3 + tokenizer.quantizer.level_axis:
            levels = ", levels" if tokenizer.quantizer.level_axis else ""
            raise ValueError(f"indices has shape {tuple(indices.shape)}: expected a grid of patches, (B, h, w{levels})")

        def decoded(top: int, bottom: int, left: int, right: int) -> Tensor:
            part = tokenizer.decode(indices[:, top:bottom, left:right])
            expected = ((bottom - top) * factor, (right - left) * factor)
            if part.shape[-2:] != expected:
                raise ValueError(
                    f"a tile of {bottom - top} x {right - left} patches is decoded to shape {tuple(part.shape)}: "
                    f"expected {expected[0]} x {expected[1]} pixels, by the encoder's factor; decode it whole"
                )
            return part

        return self._joined(indices.shape[1], indices.shape[2], factor, decoded, dims=(-2, -1), scale=factor)

    def _joined(
        self,
        height: int,
        width: int,
        factor: int,
        run: Callable[[int, int, int, int], Tensor],
        *,
        dims: tuple[int, int],
        scale: int = 1,
    ) -> Tensor:
        """What `run` gives for the tiles of a grid of patches, each without what its neighbours keep."""
        rows = []
        for top, bottom, first_row, last_row in self._spans(height, factor):
            parts = []
            for left, right, first, last in self._spans(width, factor):
                part = run(top, bottom, left, right)
                part = part.narrow(dims[0], (first_row - top) * scale, (last_row - first_row) * scale)
                parts.append(part.narrow(dims[1], (first - left) * scale, (last - first) * scale))
            rows.append(torch.cat(parts, dims[1]))
        return torch.cat(rows, dims[0])

    def _spans(self, length: int, factor: int) -> Iterator[tuple[int, int, int, int]]:
        """(start, end) of tiles along a side and (start, end) of what each keeps, all in patches."""
        size, overlap = self.size // factor, self.overlap // factor
        kept = 0
        while kept < length:
            start = min(max(kept - overlap, 0), max(length - size, 0))
            end = min(start + size, length)
            keeps = length if end == length else end - overlap
            yield start, end, kept, keeps
            kept = keeps

"""What counts as a photograph: a cheap filter, and a perceptual hash that finds near-duplicates.

It is a heuristic on pixels. It throws out icons, cut-outs with a transparent ground, gray pictures, and pictures that
are mostly one colour; it cannot tell a detailed drawing from a photograph, which is why ``sources.toml`` also names
folders.
"""

import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
JPEG_QUALITY = 95
MIN_SIDE = 128  # pixels
MAX_SHORT_SIDE = 768  # pixels; larger pictures are reduced
CROP = 256  # pixels
MIN_CROP_GRADIENT = 3.0  # mean absolute difference of neighbours, in gray levels of 255
MIN_DEVIATION = 12.0  # standard deviation in gray levels of 255
MIN_CHROMA = 5.0  # mean of (largest - smallest channel), in levels of 255
MAX_SHARE_OF_ONE_COLOUR = 0.5  # colours rounded to 5 bits per channel
MIN_DISTANCE = 19  # of 256 hash bits: closer pictures are the same picture
_HASH_SIDE = 16
_MAX_PIXELS = 60_000_000  # a guard against decompression bombs; the largest wallpaper known has 18 million


class NotAPhotograph(ValueError):
    """The picture is left out; the message is the reason in one or two words, so that reasons can be counted."""


def choose(
    files: Iterable[tuple[str, bytes]], earlier: Sequence[dict[str, Any]], left_out: Counter[str]
) -> Iterator[tuple[str, str, str, bytes, dict[str, Any]]]:
    """Chooses the photographs of a package, the largest of several copies.

    Args:
        files: pairs (path, content).
        earlier: entries of the packages before it, whose copies are left out.
        left_out: counts the reasons.

    Yields:
        The path, the sha256 of its content, a name for it, it as a JPEG, and what the manifest says of it besides.
    """
    known = [int(entry["hash"], 16) for entry in earlier]
    kept = []
    for path, content in files:
        try:
            kept.append((read_photograph(content), path, hashlib.sha256(content).hexdigest()))
        except NotAPhotograph as reason:
            left_out[str(reason)] += 1
    for image, path, sha256 in sorted(kept, key=lambda item: (-item[0].width * item[0].height, item[1])):
        picture_hash = difference_hash(image)
        if is_duplicate(picture_hash, known):
            left_out["duplicate"] += 1
            continue
        known.append(picture_hash)
        stem = re.sub(r"[^a-z0-9]+", "-", PurePosixPath(path).stem.lower()).strip("-")
        facts = {"width": image.width, "height": image.height, "hash": f"{picture_hash:064x}"}
        # The hash keeps two pictures of one name apart.
        yield path, sha256, f"{stem}-{sha256[:8]}.jpg", encode_jpeg(image, quality=JPEG_QUALITY), facts


def read_photograph(content: bytes) -> Image.Image:
    """Decodes, turns upright, judges and reduces a picture.

    Args:
        content: the bytes of an image file of any format that Pillow reads.

    Returns:
        An RGB picture whose shorter side is between 128 and 768 pixels.

    Raises:
        NotAPhotograph: the picture cannot be read or does not look like a colour photograph.
    """
    image = _decoded(content)
    shorter = min(image.size)
    if shorter > MAX_SHORT_SIDE:
        scale = MAX_SHORT_SIDE / shorter
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    pixels = np.asarray(image).astype(np.float32)
    if float((pixels.max(axis=-1) - pixels.min(axis=-1)).mean()) < MIN_CHROMA:
        raise NotAPhotograph("gray")
    if pixels.mean(axis=-1).std() < MIN_DEVIATION or _share_of_one_colour(pixels) > MAX_SHARE_OF_ONE_COLOUR:
        raise NotAPhotograph("flat")
    if not _has_detail(image):
        raise NotAPhotograph("no detail")
    return image


def difference_hash(image: Image.Image) -> int:
    """Returns a hash of 256 bits, nearly the same for similar pictures.

    A bit says whether a cell of a 16 x 16 grid is darker than its right neighbour ("dHash").
    """
    small = image.convert("L").resize((_HASH_SIDE + 1, _HASH_SIDE), Image.Resampling.BILINEAR)
    cells = np.asarray(small)
    return int.from_bytes(np.packbits(cells[:, :-1] < cells[:, 1:]).tobytes(), "big")


def is_duplicate(candidate: int, others: list[int]) -> bool:
    """Tells whether a picture with this hash is one of the others, up to size, format and small changes."""
    return any((candidate ^ other).bit_count() < MIN_DISTANCE for other in others)


def encode_jpeg(image: Image.Image, *, quality: int) -> bytes:
    """Returns the picture as a JPEG without chroma subsampling and without metadata."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality, subsampling=0, optimize=True)
    return buffer.getvalue()


def _has_detail(image: Image.Image) -> bool:
    """Whether one of the crops of 256 pixels (sides below that: the whole side) has some."""
    gray = np.asarray(image).astype(np.float32).mean(axis=-1)
    height, width = (min(CROP, side) for side in gray.shape)
    for top in range(0, gray.shape[0] - height + 1, height):
        for left in range(0, gray.shape[1] - width + 1, width):
            crop = gray[top : top + height, left : left + width]
            gradient = (np.abs(np.diff(crop, axis=0)).mean() + np.abs(np.diff(crop, axis=1)).mean()) / 2
            if gradient > MIN_CROP_GRADIENT and crop.std() > MIN_DEVIATION:
                return True
    return False


def _decoded(content: bytes) -> Image.Image:
    try:
        with Image.open(io.BytesIO(content)) as image:
            if min(image.size) < MIN_SIDE:
                raise NotAPhotograph("small")
            if image.width * image.height > _MAX_PIXELS:
                raise NotAPhotograph("huge")
            upright = ImageOps.exif_transpose(image)
            if upright.has_transparency_data:
                upright = upright.convert("RGBA")
                if upright.getchannel("A").getextrema()[0] < 255:
                    raise NotAPhotograph("transparent")
            return upright.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # Pillow's decoders raise all of these on damaged files.
        if isinstance(error, NotAPhotograph):
            raise
        raise NotAPhotograph("unreadable") from error


def _share_of_one_colour(pixels: np.ndarray) -> float:
    levels = pixels.astype(np.int32) >> 3
    keys = (levels[..., 0] << 10) | (levels[..., 1] << 5) | levels[..., 2]
    return float(np.bincount(keys.ravel()).max() / keys.size)

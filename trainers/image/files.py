"""Image files: which of them can be used, and how one becomes pixels. Knows Pillow, not Lightning."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy
from PIL import Image

from trainers.data.files import Folder, content_hash, found_under, inspected

# EPS runs an outside program on the file; the others are recognised by Pillow but never decoded by it.
LEFT_OUT_FORMATS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
ORIENTATION_TAG = 0x0112
TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class ImageFile:
    """One usable image file.

    Attributes:
        name: Path relative to the root, with forward slashes.
        height: Pixels, as shown (after the EXIF orientation).
        width: Pixels, as shown.
        content: 16 hexadecimal digits of a hash of the bytes, equal for identical files.
    """

    name: str
    height: int
    width: int
    content: str


def formats() -> list[str]:
    """Names of the formats that this installation of Pillow decodes."""
    Image.init()
    return sorted(set(Image.OPEN) - LEFT_OUT_FORMATS)


def scan(root: Path, *, min_size: int) -> Folder[ImageFile]:
    """Finds the images under a folder by reading the header and the ends of every file with an image's suffix.

    Nothing is decoded, so a file that is damaged in the middle is found only when it is read. Hidden files and folders
    are left out; links to folders are followed once.

    Args:
        root: The folder, of any nesting.
        min_size: Images whose shorter side has fewer pixels are skipped.
    """
    known = set(formats())
    suffixes = {suffix for suffix, name in Image.registered_extensions().items() if name in known}
    candidates, other_files = found_under(root, suffixes)
    return inspected(root, candidates, lambda path: inspect(path, root, min_size), other_files=other_files)


def inspect(path: Path, root: Path, min_size: int) -> ImageFile | str:
    """Reads a file's header and ends: the image, or in words why it cannot be used."""
    try:
        with Image.open(path, formats=formats()) as image:
            width, height = image.size
            if orientation(image) >= 5:
                width, height = height, width
        content = content_hash(path)
    except Exception as error:  # Pillow's readers raise whatever a damaged file makes them trip over
        return reason(error)
    if min(width, height) < min_size:
        return f"too small: {width}x{height} pixels, min_size is {min_size}"
    return ImageFile(path.relative_to(root).as_posix(), height, width, content)


def reason(error: Exception) -> str:
    """An error as a short reason."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image that Pillow can identify"
    return f"cannot be read: {error or type(error).__name__}"


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1-8; 1 (upright) when there is none or the EXIF block is damaged."""
    try:
        value = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # a damaged EXIF block is no reason to lose the image
        return 1
    return value if value in TRANSPOSES else 1


def reduced_size(height: int, width: int, shorter_side: int) -> tuple[int, int]:
    """(height, width) after shrinking so that the shorter side is `shorter_side`; smaller images stay as they are."""
    if min(height, width) <= shorter_side:
        return height, width
    scale = shorter_side / min(height, width)
    return max(shorter_side, round(height * scale)), max(shorter_side, round(width * scale))


def read(path: Path, *, shorter_side: int) -> numpy.ndarray:
    """Decodes an image: upright, RGB, first frame, shrunk so that its shorter side is at most `shorter_side` pixels.

    Transparent pixels are laid over white; 16-bit pixels become 8-bit. Colour profiles are not applied. JPEG files are
    decoded at a half, quarter or eighth of their size where that still reaches the wanted size, which is up to four
    times faster (and 45 to 50 dB from the full decode on photographs).

    Args:
        path: The file.
        shorter_side: Pixels.

    Returns:
        (height, width, 3) uint8.

    Raises:
        ValueError: If the file cannot be decoded; the message is the reason, without the file name.
    """
    try:
        with Image.open(path, formats=formats()) as image:
            turn = TRANSPOSES.get(orientation(image))
            height, width = reduced_size(image.height, image.width, shorter_side)
            image.draft(None, (width, height))
            pixels = to_rgb(image)
            if pixels.size != (width, height):
                pixels = pixels.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
            return numpy.array(pixels if turn is None else pixels.transpose(turn))
    except Exception as error:  # as in `inspect`
        raise ValueError(reason(error)) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """The first frame in RGB, 8 bits, transparency over white."""
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is not known")
    if image.mode.startswith("I"):
        values = numpy.asarray(image)
        if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
            raise ValueError("integer pixels outside 0..65535")
        return Image.fromarray(((values.astype(numpy.int64) + 128) // 257).astype(numpy.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def crop_side(uniform: float, *, shorter_side: int, resolution: int, scale: tuple[float, float]) -> int:
    """Side of a random square crop, log-uniform in scale, never below the resolution where the image allows it.

    Args:
        uniform: A number in [0, 1).
        shorter_side: The image's, in pixels.
        resolution: Side of the finished crop, in pixels.
        scale: Least and greatest side as a share of the shorter side.
    """
    most = min(shorter_side, max(resolution, scale[1] * shorter_side))
    least = min(most, max(resolution, scale[0] * shorter_side))
    return round(math.exp((1 - uniform) * math.log(least) + uniform * math.log(most)))

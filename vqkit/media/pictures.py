"""How an image file becomes pixels, and which formats there are. Needs Pillow."""

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy
from PIL import Image
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.TiffImagePlugin import TiffImageFile

from vqkit.media.files import EDGE_BYTES, open_plain
from vqkit.saving.files import write_whole
from vqkit.tokens.names import escaped

MAX_PIXELS = 2 * 89478485  # beyond which Pillow takes a picture for an attack
BITS_TAG, PHOTOMETRIC_TAG, EXTRA_TAG, SAMPLE_FORMAT_TAG = 258, 262, 338, 339  # of TIFF
warnings.simplefilter("error", Image.DecompressionBombWarning)  # which names neither file nor argument

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


def formats() -> list[str]:
    """Names of the formats that this installation of Pillow decodes."""
    Image.init()
    return sorted(set(Image.OPEN) - LEFT_OUT_FORMATS)


def suffixes() -> set[str]:
    """Suffixes of these formats, in lower case with their dot."""
    known = set(formats())
    return {suffix for suffix, name in Image.registered_extensions().items() if name in known}


@contextmanager
def opened(path: Path, max_pixels: int) -> Iterator[Image.Image]:
    """A plain file as an image of which the header is read; none of more than `max_pixels`."""
    Image.MAX_IMAGE_PIXELS = max_pixels  # Pillow looks also at pictures within the picture, as in icons
    with open_plain(path) as file, Image.open(file, formats=formats()) as image:
        yield image


def reason(error: Exception) -> str:
    """An error as a short reason."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image that Pillow can identify"
    if isinstance(error, Image.DecompressionBombWarning | Image.DecompressionBombError):
        return f"more than max_pixels={Image.MAX_IMAGE_PIXELS} pixels: raise it where you trust the file"
    return f"cannot be read: {getattr(error, 'strerror', None) or error or type(error).__name__}"


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1-8; 1 (upright) when there is none or the EXIF block is damaged."""
    if image.format == "TIFF":  # Pillow turns these by itself
        return 1
    try:
        value = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # a damaged EXIF block is no reason to lose the image
        return 1
    return value if value in TRANSPOSES else 1


def reduced_size(height: int, width: int, shorter_side: int | None) -> tuple[int, int]:
    """(height, width) after shrinking so that the shorter side is `shorter_side`; smaller images stay as they are."""
    if shorter_side is None or min(height, width) <= shorter_side:
        return height, width
    scale = shorter_side / min(height, width)
    return max(shorter_side, round(height * scale)), max(shorter_side, round(width * scale))


def read(
    path: Path, *, shorter_side: int | None, white: float | None = None, max_pixels: int = MAX_PIXELS
) -> numpy.ndarray:
    """Decodes an image: upright, RGB, first frame, shrunk so that its shorter side is at most `shorter_side` pixels.

    Transparent pixels are laid over white; in formats whose further band may be data (TIFF, JPEG 2000), only where the
    file says that it is opacity. Colour profiles are not applied. JPEG files are decoded at a half, quarter or eighth
    of their size where that still reaches the wanted size, which is up to four times faster (and 45 to 50 dB from the
    full decode on photographs).

    Args:
        path: The file.
        shorter_side: Pixels; None leaves the size as it is.
        white: The value that is white, where values have more than 8 bits; black is 0. None is the greatest that the
            file's type holds, 65535 for 16 bits (`greatest_value`).
        max_pixels: More are refused.

    Returns:
        (height, width, 3) uint8.

    Raises:
        ValueError: If the file cannot be decoded, or has values below 0 or above white; the message is the reason,
            without the file name.
    """
    try:
        with opened(path, max_pixels) as image:
            turn = TRANSPOSES.get(orientation(image))
            height, width = reduced_size(image.height, image.width, shorter_side)
            image.draft(None, (width, height))
            pixels = to_rgb(image, white)
            if pixels.size != (width, height):
                pixels = pixels.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
            return numpy.array(pixels if turn is None else pixels.transpose(turn))
    except Exception as error:  # Pillow's readers raise whatever a damaged file makes them trip over
        raise ValueError(reason(error)) from error


def is_deep(image: Image.Image) -> bool:
    """Whether the values of an image that is not decoded yet have more than 8 bits."""
    return image.mode[0] in "IF" or reduced_to_bytes(image)


def reduced_to_bytes(image: Image.Image) -> bool:
    """Whether Pillow drops the lower half of 16 bits, as it does in colour."""
    return image.mode[0] not in "IF" and any(
        ";16" in str(tile) or tile[0] == "SGI16" for tile in getattr(image, "tile", ())
    )


def tiff_tag(image: Image.Image, tag: int) -> tuple[int, ...]:
    """The values of a tag; none in other formats, or where it is missing."""
    values = image.tag_v2.get(tag, ()) if isinstance(image, TiffImageFile) else ()
    return values if isinstance(values, tuple) else (values,)


def greatest_value(image: Image.Image) -> float | None:
    """The greatest value that the type of an image holds; None where that says nothing about what is white."""
    if image.mode == "F":
        return None
    if image.mode == "I":  # 32 bits, or 16 that Pillow made 32
        signed = tiff_tag(image, BITS_TAG) == (16,)
        return 32767 if signed else 65535 if image.format == "PPM" else None
    if image.mode.startswith("I"):
        return 4095 if tiff_tag(image, BITS_TAG) == (12,) else 65535
    return 65535 if reduced_to_bytes(image) else 255


def check_meaning(image: Image.Image, white: float | None) -> None:
    """Refuses an image of which the header leaves open what its numbers are.

    Raises:
        ValueError: Numbers without a known white, or bands without a known meaning; the message is the reason.
    """
    if image.format == "FITS" and image.mode != "L":
        raise ValueError("numbers of FITS, whose zero and scale Pillow does not read: convert it")
    if tiff_tag(image, SAMPLE_FORMAT_TAG) == (2,) and tiff_tag(image, BITS_TAG) == (8,):
        raise ValueError("signed values of 8 bits, which Pillow takes for unsigned ones: convert it")
    if len(tiff_tag(image, EXTRA_TAG)) > 1:
        raise ValueError(f"{len(tiff_tag(image, BITS_TAG))} bands: write the three that are a picture to another file")
    if white is None and greatest_value(image) is None:
        kind = "floating-point values" if image.mode == "F" else "integers of 32 bits"
        raise ValueError(f"{kind}, of which none is known to be white: give the value as white")
    if white not in (None, 65535) and reduced_to_bytes(image):
        raise ValueError(
            f"16 bits in colour, of which Pillow reads the upper 8, so that white={white:g} cannot be used: convert it "
            "to 8 bits, or leave white out"
        )


def says_opacity(image: Image.Image) -> bool:
    """Whether the band after the colours is opacity: in TIFF and JPEG 2000 only if the file says so."""
    if image.format == "TIFF":
        return bool({1, 2} & set(tiff_tag(image, EXTRA_TAG)))  # associated (premultiplied) and not
    if not isinstance(image, Jpeg2KImageFile):
        return True
    file = image.fp
    assert file is not None  # it is not decoded yet
    place = file.tell()
    file.seek(0)
    definition = file.read(EDGE_BYTES).partition(b"jp2c")[0].partition(b"cdef")[2]  # of channels, before the code
    file.seek(place)
    types = struct.unpack_from(f">{3 * int.from_bytes(definition[:2])}H", definition, 2)[1::3] if definition else ()
    return bool({1, 2} & set(types))


def greatest_found(path: Path, max_pixels: int) -> tuple[float, float]:
    """The greatest value of an image with more than 8 bits, and what `read` takes for white; (0, 1) if it is broken."""
    try:
        with opened(path, max_pixels) as image:
            white, scale = greatest_value(image) or 1, 257 if reduced_to_bytes(image) else 1
            colours = image.convert("RGB") if scale > 1 else image
            return scale * float(numpy.max(numpy.asarray(colours))), white
    except Exception:  # as in `read`; it is named when it is read
        return 0, 1


def to_rgb(image: Image.Image, white: float | None) -> Image.Image:
    """The first frame in RGB, 8 bits, transparency over white; `white` as for `read`."""
    check_meaning(image, white)
    if image.mode[0] in "IF":
        return Image.fromarray(to_bytes(image, white or greatest_value(image) or 0)).convert("RGB")
    if (image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info) and says_opacity(image):
        image = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def to_bytes(image: Image.Image, white: float) -> numpy.ndarray:
    """Numbers of one band, 0 ... white, as uint8 (height, width)."""
    values = numpy.asarray(image).astype(numpy.float64)
    least, greatest = values.min(initial=0), values.max(initial=0)
    if not 0 <= least <= greatest <= white:
        raise ValueError(f"values from {least:g} to {greatest:g}, expected 0 to white={white:g}")
    if "transparency" in image.info:
        values[values == image.info["transparency"]] = white
    if tiff_tag(image, PHOTOMETRIC_TAG) == (0,):  # white is 0
        values = white - values
    return numpy.floor(values * (255 / white) + 0.5).astype(numpy.uint8)


def check_writable(target: Path) -> None:
    """Refuse a name of which the ending is no format that Pillow writes, and reads as a colour picture of that size."""
    Image.init()
    probe, data = Image.new("RGB", (300, 200)), io.BytesIO()  # icons are at most 256 pixels wide, or square
    try:
        probe.save(data, format=Image.registered_extensions()[target.suffix.lower()])
        with Image.open(data) as image:
            kept = image.size == probe.size
    except (KeyError, OSError, ValueError):
        kept = False
    if not kept:
        raise ValueError(
            f"{escaped(str(target))}: expected a format that Pillow writes in colour and in any size, such as "
            f"{escaped(target.stem)}.png"
        )


def write(path: Path, pixels: numpy.ndarray) -> None:
    """A picture to a file in the format of its ending, whole or not at all.

    Args:
        path: The file.
        pixels: (height, width, 3) uint8.
    """
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, format=Image.registered_extensions()[path.suffix.lower()])
    write_whole(path, data.getbuffer())

"""Sheets of what codes stand for: details of pictures and of sound, in rows with titles. Needs Pillow and numpy."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

CELL, GAP, TITLE = 112, 4, 26
"""Side of a cell, the space between cells, and the height of a title, in pixels."""
AROUND = 1
"""What is shown of a picture around a token: as much on each side as the token itself."""
SECONDS = 0.5
"""What is shown of a recording around the middle of a token."""
WINDOW, BANDS = 512, 128
"""Samples of a spectrum, and the bands that are shown of it."""
DECIBELS = 70.0
"""From white to black in a spectrogram."""
SILENT = 1e-8
"""The power below which half a second is white throughout."""
PAPER, INK, FRAME = (255, 255, 255), (20, 20, 20), (255, 60, 40)


@dataclass(frozen=True, eq=False)
class Row:
    """What a sheet shows of a code.

    Attributes:
        title: above it.
        strips: below one another, each of cells (CELL, CELL, 3) uint8 side by side; none for a title alone.
    """

    title: str
    strips: Sequence[Sequence[numpy.ndarray]]


def sheet(rows: Sequence[Row]) -> numpy.ndarray:
    """Rows below one another, (height, width, 3) uint8."""
    step = CELL + GAP
    columns = max((len(strip) for row in rows for strip in row.strips), default=1)
    height = sum(TITLE + step * len(row.strips) for row in rows) + GAP
    font = ImageFont.load_default(15)
    widest = max(math.ceil(font.getlength(row.title)) for row in rows)
    image = Image.new("RGB", (GAP + max(step * columns, widest + GAP), height), PAPER)
    draw, top = ImageDraw.Draw(image), 0
    for row in rows:
        draw.text((GAP, top + 4), row.title, fill=INK, font=font)
        top += TITLE
        for strip in row.strips:
            for column, cell in enumerate(strip):
                image.paste(Image.fromarray(cell), (GAP + step * column, top))
            top += step
    return numpy.asarray(image)


def picture_cell(pixels: numpy.ndarray, box: tuple[float, float, float, float]) -> numpy.ndarray:
    """A token of a picture with what is around it, enlarged without smoothing; a frame shows what is the token's.

    Args:
        pixels: (height, width, 3) uint8.
        box: top, left, bottom and right of the token, in pixels; what lies beyond the picture is left out.

    Returns:
        (CELL, CELL, 3) uint8.
    """
    height, width = pixels.shape[:2]
    top, left, bottom, right = box
    above, beside = AROUND * (bottom - top), AROUND * (right - left)
    first_row = min(max(0, round(top - above)), height - 1)  # a small picture may be filled up by several tokens
    first_column = min(max(0, round(left - beside)), width - 1)
    detail = pixels[first_row : min(height, round(bottom + above)), first_column : min(width, round(right + beside))]
    scale = CELL / max(detail.shape[:2])
    size = [max(1, round(side * scale)) for side in detail.shape[1::-1]]
    image = Image.new("RGB", (CELL, CELL), PAPER)
    image.paste(Image.fromarray(numpy.ascontiguousarray(detail)).resize(size, Image.Resampling.NEAREST))
    corners = [left - first_column, top - first_row, right - first_column, bottom - first_row]
    left, top, right, bottom = (min(corner * scale, CELL - 1) for corner in corners)
    draw = ImageDraw.Draw(image)
    draw.rectangle([left - 1, top - 1, right + 1, bottom + 1], outline=INK)  # which orange pictures show, too
    draw.rectangle([left, top, right, bottom], outline=FRAME)
    return numpy.asarray(image)


def clip(wave: Tensor, span: tuple[float, float], sample_rate: int) -> tuple[Tensor, tuple[float, float]]:
    """Half a second of a recording around a token.

    Args:
        wave: (T,).
        span: first and last sample of the token.
        sample_rate: in Hz.

    Returns:
        (t,), zeros beyond the ends of the recording, and the span in it.
    """
    length = max(WINDOW, round(SECONDS * sample_rate))
    first = round(sum(span) / 2 - length / 2)
    held = wave[max(0, first) : max(0, first + length)]
    before = max(0, -first)
    return torch.nn.functional.pad(held, (before, length - before - len(held))), (span[0] - first, span[1] - first)


def sound_cell(wave: Tensor, span: tuple[float, float], sample_rate: int) -> numpy.ndarray:
    """The spectrogram of half a second around a token, low tones at the bottom; lines show where the token is.

    Args:
        wave: (T,) a recording.
        span: first and last sample of the token.
        sample_rate: in Hz.

    Returns:
        (CELL, CELL, 3) uint8, darker where there is more, within 70 dB of the greatest.
    """
    heard, (first, last) = clip(wave.float(), span, sample_rate)
    window = torch.hann_window(WINDOW)
    spectrum = torch.stft(heard, WINDOW, WINDOW // 4, window=window, pad_mode="constant", return_complex=True).abs()
    power = spectrum[:BANDS].square()
    floor = power.amax().clamp(min=SILENT) * 10 ** (-DECIBELS / 10)
    level = (power.clamp(min=floor) / floor).log10() * 10 / DECIBELS
    shades = ((1 - level.flip(0)) * 255).round().byte().numpy()
    image = Image.fromarray(shades).resize((CELL, CELL), Image.Resampling.BILINEAR).convert("RGB")
    draw = ImageDraw.Draw(image)
    for sample in (first, last):
        column = min(max(sample / len(heard), 0), 1) * (CELL - 1)
        draw.line([(column, 0), (column, CELL)], fill=FRAME)
    return numpy.asarray(image)

"""What a code draws: places in real files where it stands, as they are and as the tokenizer decodes them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy
import torch
from torch import Tensor

from vqkit.command_line.jobs import Batches, Job, Run, found
from vqkit.command_line.medium import Coded, Medium
from vqkit.inspect.occurrences import Occurrence, sample_occurrences
from vqkit.inspect.sheets import Row, clip, picture_cell, sheet, sound_cell
from vqkit.inspect.statistics import CodeStatistics
from vqkit.media import pictures
from vqkit.tokenizers.audio import AudioTokenizer
from vqkit.tokens.names import escaped

USUAL_CODES = 8
"""Codes that are drawn where none is named: those that are used most."""
SILENCE_SECONDS = 0.15
"""Between clips of sound."""


class Cells(Protocol):
    """What a medium shows of a token."""

    def check(self, target: Path) -> None:
        """Refuse a target of which the ending stands for no format."""

    def pair(self, path: Path, coded: Coded) -> tuple[Any, Any]:
        """A file, as it is and as its tokens decode."""

    def cell(self, data: Any, place: tuple[int, ...], grid: Sequence[int]) -> Any:
        """What is shown of a token, by its place in the grid of its level."""

    def write(self, target: Path, rows: Sequence[Row]) -> None:
        """All of it, as a file."""


@dataclass(frozen=True, eq=False)
class PictureCells:
    """Details of pictures."""

    medium: Any

    def check(self, target: Path) -> None:
        """See `Cells`."""
        pictures.check_writable(target)

    def pair(self, path: Path, coded: Coded) -> tuple[numpy.ndarray, numpy.ndarray]:
        """See `Cells`."""
        return self.medium.load(path), next(self.medium.decode([coded]))

    def cell(self, data: numpy.ndarray, place: tuple[int, ...], grid: Sequence[int]) -> numpy.ndarray:
        """See `Cells`."""
        if len(place) != 2:
            raise ValueError("the tokens of this tokenizer have no place in the picture, so that none can be shown")
        height, width = (side / count for side, count in zip(self.medium.alike(data), grid, strict=True))
        top, left = place[0] * height, place[1] * width
        return picture_cell(data, (top, left, top + height, left + width))

    def write(self, target: Path, rows: Sequence[Row]) -> None:
        """See `Cells`."""
        pictures.write(target, sheet(rows))


@dataclass(frozen=True, eq=False)
class SoundCells:
    """Clips of recordings: a sheet of spectrograms, or a file of sound, by the ending of the target."""

    medium: Any
    as_sound: bool

    def check(self, target: Path) -> None:
        """See `Cells`."""
        (self.medium.check_writable if self.as_sound else pictures.check_writable)(target)

    def pair(self, path: Path, coded: Coded) -> tuple[Tensor, Tensor]:
        """See `Cells`."""
        heard = torch.cat(list(self.medium.load(path).pieces()), dim=-1)
        decoded = torch.cat(list(self.medium.decode(coded)), dim=-1)
        return heard[0].mean(0), decoded[0, :, : heard.shape[-1]].mean(0)

    def cell(self, data: Tensor, place: tuple[int, ...], grid: Sequence[int]) -> Any:
        """See `Cells`."""
        codec: AudioTokenizer = self.medium.tokenizer
        step = codec.frames_per_step * codec.downsampling_factor
        samples = step * -(-len(data) // step) / grid[0]
        span = (place[0] * samples, (place[0] + 1) * samples)
        if self.as_sound:
            return clip(data, span, codec.sample_rate)[0]
        return sound_cell(data, span, codec.sample_rate)

    def write(self, target: Path, rows: Sequence[Row]) -> None:
        """See `Cells`: of sound each place as it is, then decoded, one code after another."""
        if not self.as_sound:
            pictures.write(target, sheet(rows))
            return
        from vqkit.media.recordings import write_pieces

        codec: AudioTokenizer = self.medium.tokenizer
        silence = torch.zeros(round(SILENCE_SECONDS * codec.sample_rate))
        clips = [
            piece for row in rows for pair in zip(*row.strips, strict=True) for one in pair for piece in (one, silence)
        ]
        sound = torch.cat(clips).expand(1, codec.channels, -1)
        write_pieces(target, [sound], sample_rate=codec.sample_rate, channels=codec.channels)


def draw_codes(
    medium: Medium[Any],
    run: Run,
    say: Callable[[str], object],
    source: Path,
    target: Path,
    *,
    codes: Sequence[int],
    level: int,
    columns: int,
    seed: int,
) -> None:
    """Write a sheet of what codes stand for in some files.

    Args:
        medium: reads, encodes and decodes files.
        run: is told what becomes of the files.
        say: is told a line for each code.
        source: a file, or a folder.
        target: the sheet.
        codes: their numbers; none for those that are used most.
        level: of the indices, coarse first.
        columns: places that are shown of each code, at most.
        seed: of their choice.

    Raises:
        ValueError: there is no such code or level, none of the codes stands in the files, or the target cannot be
            written.
    """
    cells = _cells(medium, target)
    cells.check(target)
    quantizer = medium.tokenizer.quantizer
    sizes = quantizer.level_sizes
    if not 0 <= level < len(sizes):
        raise ValueError(f"--level {level}: expected 0 to {len(sizes) - 1}, the levels of this tokenizer")
    if wrong := [code for code in codes if not 0 <= code < sizes[level]]:
        raise ValueError(f"--code {wrong[0]}: expected 0 to {sizes[level] - 1}")
    files, coded = _encoded(medium, run, source)
    grids = [quantizer.to_grids(one.indices)[level][0] for one in coded]
    statistics = CodeStatistics(sizes[level])
    for grid in grids:
        statistics.update(grid)
    chosen = list(codes) or statistics.most_used(USUAL_CODES)
    places = {code: sample_occurrences(grids, code, columns, seed=seed + code) for code in chosen}
    if not any(places.values()):
        raise ValueError(f"--code {', '.join(map(str, chosen))}: stands nowhere in these {len(files)} files")
    strips: dict[int, list[tuple[Any, Any]]] = {code: [] for code in chosen}
    for number in sorted({place.source for found_places in places.values() for place in found_places}):
        pair = cells.pair(files[number], coded[number])
        for code, occurrence in _in_file(places, number):
            strips[code].append(tuple(cells.cell(data, occurrence.place, grids[number].shape) for data in pair))
    rows = []
    for code in chosen:
        count, holders = int(statistics.counts[code]), sum(bool((grid == code).any()) for grid in grids)
        line = (
            f"code {code}: {count:,} of {statistics.tokens:,} tokens ({count / max(statistics.tokens, 1):.2%}), in "
            f"{holders} of {len(grids)} files"
        )
        say(line)
        rows.append(Row(line, list(zip(*strips[code], strict=True))))
    cells.write(target, rows)


def _cells(medium: Medium[Any], target: Path) -> Cells:
    if not isinstance(medium.tokenizer, AudioTokenizer):
        return PictureCells(medium)
    pictures_too = pictures.suffixes()
    return SoundCells(medium, as_sound=target.suffix.lower() not in pictures_too)


def _encoded(medium: Medium[Any], run: Run, source: Path) -> tuple[list[Path], list[Coded]]:
    """The files that could be used, and their indices."""
    paths, skipped = found(source, medium.suffixes)
    for name, why in skipped.items():
        run.failed(name, why)
    run.total = len(paths) + len(run.failures)
    files: list[Path] = []
    coded: list[Coded] = []

    def work(batch: list[Job], loaded: list[Any]) -> Any:
        for job, one in zip(batch, medium.encode(loaded), strict=True):
            files.append(job.source)
            coded.append(one)
            yield job

    Batches(run, medium.load, medium.alike, medium.batch_size).each([Job(path, path) for path in paths], work)
    run.clear()
    if not files:
        raise ValueError(f"{escaped(str(source))}: none of the files could be encoded")
    return files, coded


def _in_file(places: dict[int, list[Occurrence]], number: int) -> list[tuple[int, Occurrence]]:
    return [(code, place) for code, some in places.items() for place in some if place.source == number]

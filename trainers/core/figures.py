"""Figures of a trained tokenizer that a person can judge it by, of any modality."""

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from vqkit.saving.files import write_whole

matplotlib.use("Agg")


def grid_figure(
    columns: Mapping[str, Sequence[Tensor]],
    captions: Mapping[str, Sequence[str]],
    path: Path,
    *,
    show: Callable[[Axes, int, Tensor], None],
    cell_size: tuple[float, float],
) -> None:
    """One row for each file, one column for each method.

    Args:
        columns: title -> what it made of each file; the first column is the original.
        captions: title -> what stands below each cell.
        path: PNG to write.
        show: draws into the axes of a row; called column by column.
        cell_size: width and height of a cell, in inches.
    """
    rows = len(next(iter(columns.values())))
    figure = Figure(figsize=(cell_size[0] * len(columns), cell_size[1] * rows), layout="constrained")
    axes = figure.subplots(rows, len(columns), squeeze=False)
    for column, (title, cells) in enumerate(columns.items()):
        for row, cell in enumerate(cells):
            show(axes[row][column], row, cell)
            axes[row][column].set(xlabel=captions[title][row])
        axes[0][column].set_title(title)
    write_figure(figure, path)


def write_figure(figure: Figure, path: Path) -> None:
    """Write a PNG whole."""
    content = BytesIO()
    figure.savefig(content, format="png", dpi=110)
    write_whole(path, content.getvalue())

"""Vectors and series beside what was made of them, as curves."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from trainers.core.figures import write_figure

MOST_CURVES = 3


def write_curves(path: Path, originals: Sequence[Tensor], reconstructions: Sequence[Tensor]) -> Path:
    """A row for each sample: a vector (C,) over its dimensions, or the first channels of a series (C, T) over time."""
    rows = len(originals)
    figure = Figure(figsize=(9, 1.3 * rows), layout="constrained")
    for axis, original, copy in zip(
        figure.subplots(rows, 1, squeeze=False)[:, 0], originals, reconstructions, strict=True
    ):
        pairs = zip(original.view(-1, original.shape[-1]), copy.view(-1, copy.shape[-1]), strict=True)
        for number, (curve, other) in enumerate(list(pairs)[:MOST_CURVES]):
            axis.plot(curve.float().cpu().numpy(), color=f"C{number}", linewidth=0.8, alpha=0.5)
            axis.plot(other.float().cpu().numpy(), color=f"C{number}", linewidth=0.8)
        axis.margins(x=0)
        axis.tick_params(labelsize=7)
    write_figure(figure, path)
    return path

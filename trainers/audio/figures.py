"""Figures of a trained codec that a person can judge it by: spectrograms side by side, and the use of its codes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from trainers.audio.spectra import MelSpectrum
from trainers.core.figures import grid_figure, write_figure

RANGE_DB = 70.0
MEL_BANDS = 96
WINDOW_SECONDS = 0.04


def spectrogram_figure(
    columns: Mapping[str, Sequence[Tensor]],
    captions: Mapping[str, Sequence[str]],
    path: Path,
    *,
    sample_rate: int,
    seconds: float = 3.0,
) -> None:
    """One row for each recording, one column for each codec: the same seconds of each, logarithmic mel spectra in dB.

    All of a row have the colours of its original: dB below the loudest point of that.

    Args:
        columns: title -> waveforms (T,); the first column is the original.
        captions: title -> what stands below each spectrogram.
        path: PNG to write.
        sample_rate: in Hz.
        seconds: shown of each recording, from its start.
    """
    window_length = 2 ** round(torch.tensor(WINDOW_SECONDS * sample_rate).log2().item())
    spectrum = MelSpectrum(sample_rate, window_length=window_length, mel_bins=MEL_BANDS)
    tops: list[float] = []

    def show(axis: Axes, row: int, wave: Tensor) -> None:
        shown = wave.detach().float().cpu()[: int(seconds * sample_rate)]
        levels = 20 * spectrum(shown[None])[0].mT.clamp(min=1e-6).log10()
        if row == len(tops):  # of the first column
            tops.append(float(levels.max()))
        axis.imshow(
            levels.numpy(),
            origin="lower",
            aspect="auto",
            extent=(0, len(shown) / sample_rate, 0, len(levels)),
            cmap="magma",
            vmin=tops[row] - RANGE_DB,
            vmax=tops[row],
        )
        axis.set(yticks=[])

    grid_figure(columns, captions, path, show=show, cell_size=(3.6, 2.6))


def write_spectrograms(
    path: Path, originals: Sequence[Tensor], reconstructions: Sequence[Tensor], sample_rate: int
) -> Path:
    """Draw a row for each recording: the original's spectrogram, and its reconstruction's in the same colours.

    Args:
        path: PNG to write.
        originals: (C, T) each; channels are averaged.
        reconstructions: like `originals`.
        sample_rate: in Hz.

    Returns:
        `path`.
    """
    columns = {
        title: [wave.detach().float().cpu().nan_to_num(0.0, 0.0, 0.0).mean(0) for wave in waves]
        for title, waves in (("original", originals), ("reconstruction", reconstructions))
    }
    captions = {title: ["seconds"] * len(waves) for title, waves in columns.items()}
    spectrogram_figure(columns, captions, path, sample_rate=sample_rate)
    return path


def usage_figure(counts: Sequence[Tensor], path: Path, *, title: str) -> None:
    """For each level how often its codes were used, most used first, and which share of the codes it used at all.

    Args:
        counts: (K,) for each level, coarse first: how often each code was used.
        path: PNG to write.
        title: what was counted.
    """
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    curves, bars = figure.subplots(1, 2, width_ratios=[1.6, 1])
    colours = matplotlib.colormaps["viridis"]
    for level, uses in enumerate(counts):
        share = uses.sort(descending=True).values.double() / uses.sum().clamp(min=1)
        colour = colours(level / max(1, len(counts) - 1))
        curves.semilogy(torch.arange(1, len(uses) + 1).numpy(), share.clamp(min=1e-6).numpy(), color=colour)
    curves.set(xlabel="codes, sorted by use", ylabel="share of the level's codes", title=title)
    used = [float((uses > 0).double().mean()) for uses in counts]
    bars.bar(range(1, len(counts) + 1), used, color=[colours(n / max(1, len(counts) - 1)) for n in range(len(counts))])
    bars.set(xlabel="level, coarse first", ylabel="share of codes used", ylim=(0, 1))
    write_figure(figure, path)

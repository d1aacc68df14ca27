"""Pictures of a trained codec that a person can judge it by: spectrograms side by side, and the use of its codes."""

import warnings
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor

from vqkit.saving.files import write_whole

matplotlib.use("Agg")

RANGE_DB = 70.0
MEL_BANDS = 96


def spectrogram_figure(
    columns: Mapping[str, Sequence[Tensor]],
    captions: Mapping[str, Sequence[str]],
    path: Path,
    *,
    sample_rate: int,
    seconds: float = 3.0,
) -> None:
    """One row per utterance, one column per codec: the same seconds of each, logarithmic mel spectra in dB.

    All of a row have the colours of its original: dB below the loudest point of that.

    Args:
        columns: title -> waveforms (T,); the first column is the original.
        captions: title -> what stands below each picture.
        path: PNG to write.
        sample_rate: in Hz.
        seconds: shown of each utterance, from its start.
    """
    rows = len(next(iter(columns.values())))
    figure = Figure(figsize=(3.6 * len(columns), 2.6 * rows), layout="constrained")
    axes = figure.subplots(rows, len(columns), squeeze=False)
    tops: list[float] = []
    for column, (title, waves) in enumerate(columns.items()):
        for row, wave in enumerate(waves):
            shown = wave[: int(seconds * sample_rate)]
            levels = _mel_decibels(shown, sample_rate)
            if column == 0:
                tops.append(float(levels.max()))
            axis = axes[row][column]
            extent = (0, len(shown) / sample_rate, 0, len(levels))
            colours = {"vmin": tops[row] - RANGE_DB, "vmax": tops[row], "cmap": "magma"}
            axis.imshow(levels.numpy(), origin="lower", aspect="auto", extent=extent, **colours)
            axis.set(yticks=[], xlabel=captions[title][row])
            if row == 0:
                axis.set_title(title)
    _save(figure, path)


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
    _save(figure, path)


def _mel_decibels(wave: Tensor, sample_rate: int) -> Tensor:
    """(bands, frames) of any number of samples."""
    from torchaudio.functional import melscale_fbanks

    size = 2 ** round(torch.tensor(0.04 * sample_rate).log2().item())
    padded = torch.nn.functional.pad(wave.detach().float().cpu(), (0, max(0, size - len(wave))))
    spectrum = torch.stft(padded, size, size // 4, window=torch.hann_window(size), return_complex=True).abs()
    with warnings.catch_warnings():  # of bands narrower than the spacing of the bins, at low sample rates
        warnings.filterwarnings("ignore", message="At least one mel filterbank has all zero values")
        banks = melscale_fbanks(size // 2 + 1, 0.0, sample_rate / 2, MEL_BANDS, sample_rate)
    return 20 * (banks.T @ spectrum).clamp(min=1e-5).log10()


def _save(figure: Figure, path: Path) -> None:
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=100)
    write_whole(path, picture.getvalue())

"""Figures of a trained image tokenizer that a person can judge it by."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from trainers.core.figures import grid_figure, write_figure
from vqkit import Tokenizer


def reconstruction_figure(
    columns: Mapping[str, Sequence[Tensor]], captions: Mapping[str, Sequence[str]], path: Path
) -> None:
    """One row for each image, one column for each method: the same detail of each, enlarged, without smoothing.

    Args:
        columns: title -> images (3, H, W) on the uint8 grid; the first column is the original.
        captions: title -> what stands below each image.
        path: PNG to write.
    """

    def show(axis: Axes, row: int, image: Tensor) -> None:
        axis.imshow(_detail(image).permute(1, 2, 0).byte().numpy(), interpolation="nearest")
        axis.set(xticks=[], yticks=[])

    grid_figure(columns, captions, path, show=show, cell_size=(3.1, 3.35))


def codebook_figure(tokenizer: Tokenizer, counts: Tensor, path: Path, *, title: str) -> None:
    """How often each code was used, and what each code looks like.

    A code is drawn as the middle of what the decoder makes of a 5 x 5 map of it; codes are sorted by use, most used
    first.

    Args:
        tokenizer: with a single codebook.
        counts: (K,) how often each code was used on a set of images.
        path: PNG to write.
        title: what was counted.
    """
    order = counts.argsort(descending=True, stable=True)
    figure = Figure(figsize=(14, 6), layout="constrained")
    curve, tiles = figure.subplots(1, 2, width_ratios=[1, 1.15])
    share = counts[order].double() / counts.sum()
    used = int((counts > 0).sum())
    curve.semilogy(torch.arange(len(counts)).numpy(), share.clamp(min=1e-7).numpy(), label="this codebook")
    curve.axhline(1 / len(counts), color="grey", linestyle="--", label="uniform use")
    curve.set(
        xlabel="codes, sorted by use",
        ylabel="share of all tokens",
        title=f"{title}: {used} of {len(counts)} codes used",
    )
    curve.set_ylim(bottom=float(share[share > 0].min()) / 2)
    curve.legend()
    tiles.imshow(_code_grid(tokenizer, order).permute(1, 2, 0).byte().numpy(), interpolation="nearest")
    tiles.set(xticks=[], yticks=[], title="each code as the decoder draws it, most used first, by rows")
    write_figure(figure, path)


@torch.no_grad()
def _code_grid(tokenizer: Tokenizer, order: Tensor, size: int = 5) -> Tensor:
    maps = order.reshape(-1, 1, 1).expand(-1, size, size)
    images = torch.cat([tokenizer.decode(part) for part in maps.split(256)])
    factor = images.shape[-1] // size
    middle = size // 2 * factor
    codes = ((images[:, :, middle : middle + factor, middle : middle + factor].clamp(-1, 1) + 1) * 127.5).round()
    codes = torch.nn.functional.pad(codes, (0, 1, 0, 1), value=255.0)
    per_row = 1
    while per_row**2 < len(codes):
        per_row += 1
    blank = codes.new_full((per_row**2 - len(codes), *codes.shape[1:]), 255.0)
    rows = torch.cat([codes, blank]).unflatten(0, (per_row, per_row))
    return rows.permute(2, 0, 3, 1, 4).flatten(1, 2).flatten(2, 3)


def _detail(image: Tensor, size: int = 160) -> Tensor:
    top, left = ((length - min(size, length)) // 2 for length in image.shape[1:])
    return image[:, top : top + size, left : left + size]

"""The tables of the field: which level of which position comes when.

`positions` is how many there are, one after another, or the order in which those of a grid come (`vqkit.layouts.scans`)
in the shape of the grid. Indices of a sample are (*grid, levels), coarse first, as quantizers with levels return them.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vqkit.layouts.layout import Layout, check_integers
from vqkit.layouts.scans import ranks, raster, strided


def flat(positions: int | Tensor, levels: int | None = None) -> Layout:
    """One token after another: all levels of a position, then those of the next.

    Stack (Le Lan et al. 2023, https://arxiv.org/abs/2309.08804) has this table, too. There, tokens of a frame share
    their place in the attention, which is `Layout.positions`.

    Source: "flattening" of MusicGen, Copet et al. 2023 (https://arxiv.org/abs/2306.05284), sec. 2.2. Pictures of one
        level: the raster scan of VQGAN, Esser et al. 2021 (https://arxiv.org/abs/2012.09841).

    Args:
        positions: number, or order of a grid.
        levels: Q; None for indices without an axis of levels, (*grid).

    Returns:
        A layout of N Q steps.
    """
    order = _order(positions)
    if levels is None:
        return _layout(order, torch.zeros_like(order), raster(order.numel()).view(order.shape))
    order, level, position = _with_levels(order, levels)
    return _layout(order * levels + level, level, position)


def parallel(positions: int | Tensor, levels: int) -> Layout:
    """All levels of a position in one step, one to a slot.

    Source: MusicGen, Copet et al. 2023 (https://arxiv.org/abs/2306.05284), sec. 2.2.

    Args:
        positions: number, or order of a grid.
        levels: Q, at least 1.

    Returns:
        A layout of N steps and Q slots.
    """
    order, level, position = _with_levels(_order(positions), levels)
    return _layout(order, level, position, slot=level, slots=levels)


def delay(positions: int | Tensor, delays: Sequence[int]) -> Layout:
    """Level q of a position comes `delays[q]` steps after it is due, one level to a slot.

    0, 1, 2, 3 is MusicGen's delay pattern, 0, 1, 1, 1 its partial delay, and 0, 1, 1, ... the acoustic delay of Moshi.

    Source: MusicGen, Copet et al. 2023 (https://arxiv.org/abs/2306.05284), sec. 2.2; Moshi, Défossez et al. 2024
        (https://arxiv.org/abs/2410.00037), sec. 3.4.
    Differs: delays need not grow with the level. Moshi's code ends with the last frame and leaves out what is delayed
        beyond it; here every index has a step.

    Args:
        positions: number, or order of a grid.
        delays: steps of each of the Q levels, at least 0.

    Returns:
        A layout of N + max(delays) steps and Q slots.
    """
    return coarse_first(positions, [delays])


def coarse_first(positions: int | Tensor, delays: Sequence[Sequence[int]]) -> Layout:
    """Groups of levels one after another, each over all positions; levels of a group are side by side, or delayed.

    [[0], [0, 0, 0]] is the pattern that MusicGen names after VALL-E, which predicts its first level token by token and
    each of the others at once. [[0], [0], [0], [0]] is level after level. `flattened()` makes one token of a step: of
    groups of several levels that gives the coarse and fine stages of AudioLM.

    Source: VALL-E, Wang et al. 2023 (https://arxiv.org/abs/2301.02111), sec. 4; MusicGen, Copet et al. 2023
        (https://arxiv.org/abs/2306.05284), sec. 2.2; AudioLM, Borsos et al. 2022 (https://arxiv.org/abs/2209.03143),
        sec. III.

    Args:
        positions: number, or order of a grid.
        delays: of the levels of each group, in steps, at least 0.

    Returns:
        A layout of N + max(delays) steps for each group, and one slot for each level.
    """
    if not delays or any(not group or min(group) < 0 for group in delays):
        raise ValueError(f"delays is {delays}: expected a number for each level, at least 0, in groups that hold some")
    order, level, position = _with_levels(_order(positions), sum(map(len, delays)))
    count = order[..., 0].numel()
    starts = [sum(count + max(before) for before in delays[:group]) for group in range(len(delays))]
    step = torch.tensor([start + late for start, group in zip(starts, delays, strict=True) for late in group])
    return _layout(order + step, level, position, slot=level, slots=len(step))


def partial_flat(positions: int | Tensor, groups: Sequence[int], *, delays: Sequence[int] | None = None) -> Layout:
    """Groups of levels in turn: those of a group are in one step, one to a slot, and the next step has the next group.

    [1, 3] is MusicGen's partial flattening of four levels. With `delays` a group is that many positions late: of
    [1, 3] and [0, 2] steps are c0, c1, f0, c2, f1, c3, f2, f3 for coarse c and fine f at four positions.

    Source: MusicGen, Copet et al. 2023 (https://arxiv.org/abs/2306.05284), sec. 2.2.
    Differs: MusicGen's code adds steps without a code at the end where there are delays; here all steps hold some.

    Args:
        positions: number, or order of a grid.
        groups: levels of each of the G groups, at least 1.
        delays: positions by which each group is late, at least 0; None for none.

    Returns:
        A layout of N G steps, and one slot for each level.
    """
    late = [0] * len(groups) if delays is None else delays
    if not groups or min(groups) < 1:
        raise ValueError(f"groups is {groups}: expected the number of levels of each, at least 1")
    if len(late) != len(groups) or min(late) < 0:
        raise ValueError(f"delays is {delays}: expected a number for each of {len(groups)} groups, at least 0")
    sizes = torch.tensor(groups)
    order, level, position = _with_levels(_order(positions), sum(groups))
    group, later = (values.repeat_interleave(sizes) for values in (torch.arange(len(groups)), torch.tensor(late)))
    due = (order + later) * max(order[..., 0].numel(), 1) + order  # of what is due at once, earlier positions first
    return _layout(ranks(due * len(groups) + group), level, position, slot=level, slots=sum(groups))


def stack_delay(positions: int, levels: int) -> Layout:
    """The delay pattern over positions that come in strides, so that none that share a step are neighbours.

    Positions are cut into Q segments, and the first of each come first, then the second of each.

    Source: Le Lan et al. 2023, "Stack-and-Delay" (https://arxiv.org/abs/2309.08804).
    Differs: the paper tries several permutations, which are not published; this one keeps what shares a step farther
        apart than other numbers of segments do. Which keys and values stay in the cache is left to the model.

    Args:
        positions: number.
        levels: Q, at least 1.

    Returns:
        A layout of N + Q - 1 steps and Q slots.
    """
    return delay(strided(positions, levels), range(levels))


def next_scale(scales: Sequence[Sequence[int]], levels: int | None = None) -> Layout:
    """A scale in each step, coarse first: every index of it has a slot, row by row.

    Indices of a sample are those of all scales one after another, (L) or (L, levels). A level is a codebook of a scale:
    scale 0 has the first `levels` of them. The position of an index is its scale. `block_causal_mask` is the attention
    of training, and `flattened()` gives the L tokens one by one.

    Source: VAR, Tian et al. 2024 (https://arxiv.org/abs/2404.02905), sec. 3.2.

    Args:
        scales: height and width of each scale, or whatever extent it has.
        levels: Q of each index; None for indices without an axis of levels.

    Returns:
        A layout of as many steps as scales and as many slots as the largest scale has indices.
    """
    width = 1 if levels is None else levels
    sizes = torch.tensor([math.prod(extent) * width for extent in scales], dtype=torch.int64)
    if width < 1 or (sizes < 1).any():
        raise ValueError(f"scales is {scales}, levels {levels}: expected extents and levels of at least 1")
    shape = (-1,) if levels is None else (-1, levels)
    scale = torch.arange(len(sizes)).repeat_interleave(sizes)
    number = torch.arange(len(scale))
    slot = number - (sizes.cumsum(0) - sizes)[scale]
    step, slot, level = (values.view(shape) for values in (scale, slot, scale * width + number % width))
    return _layout(step, level, step, slot=slot, slots=max(sizes.tolist(), default=0))


def multi_rate(frames: int, rates: Sequence[int]) -> Layout:
    """Levels of different frame rates, interleaved: one token after another, by the time at which each begins, and of
    those that begin at once coarse first.

    Indices of a sample are (L): those of level 0, then of level 1, and so on. Rates 1, 2, 4 give seven tokens for each
    of the coarsest frames: of levels 0, 1, 2, 2, 1, 2, 2. The position of an index is its coarsest frame.

    Source: SNAC, Siuzdak, Grötschla, Lanzendörfer 2024 (https://arxiv.org/abs/2410.14411), in the order of Orpheus TTS
        (https://github.com/canopyai/Orpheus-TTS).

    Args:
        frames: of the lowest rate, at least 0.
        rates: indices of each level for one frame, at least 1.

    Returns:
        A layout of frames * sum(rates) steps.
    """
    if not rates or min(rates) < 1:
        raise ValueError(f"rates is {rates}: expected the indices of each level for one frame, at least 1")
    number = raster(frames)
    time, level, position = [], [], []
    for which, rate in enumerate(rates):
        own = torch.arange(frames * rate)
        time.append(own * (math.lcm(*rates) // rate))
        level.append(torch.full_like(own, which))
        position.append(number.repeat_interleave(rate))
    levels = torch.cat(level)
    return _layout(ranks(torch.cat(time) * len(rates) + levels), levels, torch.cat(position))


def _order(positions: int | Tensor) -> Tensor:
    """(*grid) int64: at which number each position comes."""
    if isinstance(positions, int):
        return raster(positions)
    check_integers("positions", positions)
    order = positions.to("cpu", torch.int64)
    if not torch.equal(order.flatten().sort().values, torch.arange(order.numel())):
        raise ValueError(
            f"positions of shape {tuple(order.shape)} are no order: expected every number 0 ... {order.numel() - 1} "
            "once, the number at which each position comes; layouts.raster, zigzag and hilbert make such orders"
        )
    return order


def _with_levels(order: Tensor, levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """(*grid, levels) each: the number at which the position comes, the level, and the position."""
    if levels < 1:
        raise ValueError(f"levels is {levels}: expected at least 1")
    shape = (*order.shape, levels)
    position = raster(order.numel()).view(order.shape)
    return order[..., None].expand(shape), torch.arange(levels).expand(shape), position[..., None].expand(shape)


def _layout(step: Tensor, levels: Tensor, positions: Tensor, *, slot: Tensor | None = None, slots: int = 1) -> Layout:
    """The table in which each cell stands at its step (*shape) and, where there are slots, slot (*shape)."""
    steps = int(step.max()) + 1 if step.numel() else 0
    table = torch.full((steps, slots), -1)
    table[step.flatten(), 0 if slot is None else slot.flatten()] = torch.arange(step.numel())
    return Layout(table.squeeze(1) if slot is None else table, levels, positions)

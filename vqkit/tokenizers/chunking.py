"""Long signals in bounded memory: a module run over a sequence block by block, with the context that it needs."""

from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor


def run_in_blocks(
    pieces: Iterable[Tensor],
    run: Callable[[Tensor], Tensor],
    *,
    context: tuple[int, int],
    hop_length: int = 1,
    hops_per_block: int = 256,
    dim: int = -1,
    out_per_hop: int = 1,
    out_dim: int = -1,
) -> Iterator[Tensor]:
    """What `run` gives for the whole sequence, from pieces of it: each block is run with its context on both sides.

    A block's own part is kept and what its context gave is dropped, so the edges of blocks leave no trace. Only
    rounding can differ from one run over everything. Memory is that of a block with its context, and of a piece.

    Args:
        pieces: consecutive parts of the sequence, of any lengths along `dim`.
        run: from (..., n * hop_length, ...) to (..., n * out_per_hop, ...).
        context: input samples before the first and after the last one of its own hop on which the output of a hop
            depends.
        hop_length: input samples for one hop; the last hop is filled with zeros.
        hops_per_block: hops that a block contributes, at least 1.
        dim: axis of the pieces' time.
        out_per_hop: what `run` gives for each hop.
        out_dim: time axis of what it gives.

    Yields:
        Outputs of consecutive blocks; nothing for an empty sequence.
    """
    left, right = (-(-samples // hop_length) for samples in context)
    block = hops_per_block * hop_length
    held: Tensor | None = None
    known = 0  # hops at the start of `held` that are context only

    def outputs(hops: int) -> Tensor:
        assert held is not None
        window = held.narrow(dim, 0, min(held.shape[dim], (known + hops + right) * hop_length))
        return run(window).narrow(out_dim, known * out_per_hop, hops * out_per_hop)

    for piece in pieces:
        held = piece if held is None else torch.cat([held, piece], dim=dim)
        while held.shape[dim] >= (known + right) * hop_length + block:
            yield outputs(hops_per_block)
            dropped = max(0, known + hops_per_block - left)
            known = known + hops_per_block - dropped
            held = held.narrow(dim, dropped * hop_length, held.shape[dim] - dropped * hop_length)
    if held is None:
        return
    missing = -held.shape[dim] % hop_length
    if missing:
        held = pad_end(held, missing, dim=dim)
    while (rest := held.shape[dim] // hop_length - known) > 0:
        hops = min(rest, hops_per_block)
        yield outputs(hops)
        known += hops


def pad_end(x: Tensor, count: int, *, dim: int = -1) -> Tensor:
    """`x` with `count` zeros more at the end of an axis."""
    return F.pad(x.movedim(dim, -1), (0, count)).movedim(-1, dim)

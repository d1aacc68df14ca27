"""The coder of neighbours: an adaptive model of each index given those around it and those of coarser levels."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from vqkit.bitstream import plain_mixing
from vqkit.bitstream.coder import Coder, Context
from vqkit.bitstream.plain_mixing import Plan
from vqkit.kernels import native

# Neighbours of a cell as steps over (time, row, column), most alike first: left, above, above right, above left.
_BACK = (0, 0, -1), (0, 0, -2), (0, 0, -3)
_AROUND = (0, 0, -1), (0, -1, 0), (0, -1, 1), (0, -1, -1)
_BEFORE = (0, 0, -1), (0, -1, 0), (0, -1, 1), (-1, 0, 0)

# What a decision is looked up by: pairs of a neighbour's number and how many bits of its rank count, the highest first.
_WHOLE = 20
_GROUP = 7
_BACK_CONTEXTS = (), ((0, _WHOLE),), ((1, _WHOLE),), ((0, _GROUP), (1, _GROUP))
_AROUND_CONTEXTS = (), ((0, _WHOLE),), ((1, _WHOLE),), ((2, _WHOLE),), ((0, _GROUP), (1, _GROUP))
_BEFORE_CONTEXTS = *_AROUND_CONTEXTS, ((3, _WHOLE),), ((3, _GROUP), (0, _GROUP))
_SAME_PLACE = 4  # numbers of the coarser levels: the last one, and the one before it
_COARSER_CONTEXTS = ((4, _WHOLE),), ((4, _WHOLE), (0, _GROUP)), ((4, _WHOLE), (5, _WHOLE))


class ContextMixing(Coder):
    """Each index as binary decisions down the tree of the codes' order, each decision from what came before around it.

    An index's rank in `Context.order` is found by halving 0 ... K - 1, so that a decision chooses between two groups of
    codes that are alike, and the highest bits of a rank are a coarse label (`vqkit.CoarseLabels`). What a decision is
    looked up by: the node of the tree alone; the node with the cell to the left, above, above right (of sequences one
    and two before, in three axes the frame before too), with groups of two of them, and with the cells of the last two
    coarser levels at the same place. Each context keeps a history, to which it learns a probability; a network of
    weights, chosen by which neighbours still agree with the path, and by the node, mixes their logits.

    Everything is learned while it codes, in integers, from the packet alone. Where the native kernels are built they do
    it (`python -m vqkit.kernels.native`); elsewhere Python, with the same bytes. A packet takes at most 32 MiB, in
    Python a gigabyte.

    Source: context mixing of binary decisions, Mahoney 2005 ("Adaptive weighing of context models for lossless data
        compression", Florida Tech CS-2005-16), and his later PAQ: logistic mixing, histories with learned
        probabilities, the carryless arithmetic coder.
    Differs: decisions follow a tree of code vectors; weights are chosen by the agreement of neighbours; no match model,
        and no final correction of probabilities, which brought less than 0.2% here.
    """

    number: ClassVar[int] = 4
    name: ClassVar[str] = "context mixing"

    def encode(self, values: Tensor, context: Context) -> bytes:
        """See `Coder`."""
        plan, coarser = _plan(tuple(values.shape), context), _same_place(tuple(values.shape), context)
        ranks = values.reshape(-1) if context.order is None else context.order[values.reshape(-1)]
        if native.variants():
            return bytes(native.mixing_encode(ranks, coarser, plan.numbers()).tolist())
        return plain_mixing.encode(ranks.tolist(), coarser.tolist(), plan)

    def decode(self, data: bytes, shape: tuple[int, ...], context: Context) -> Tensor:
        """See `Coder`."""
        plan, coarser = _plan(shape, context), _same_place(shape, context)
        if native.variants():
            written = torch.tensor(list(data), dtype=torch.uint8)
            found = native.mixing_decode(written, coarser, plan.numbers())
            ranks, read = found[:-1], int(found[-1])
        else:
            listed, read = plain_mixing.decode(data, coarser.tolist(), plan)
            ranks = torch.tensor(listed, dtype=torch.int64)
        if read < len(data):
            raise ValueError(f"has {len(data)} bytes, of which its indices take {read}")
        return (ranks if context.order is None else context.order.argsort()[ranks]).reshape(shape)


def _plan(shape: tuple[int, ...], context: Context) -> Plan:
    """Which neighbours and contexts a packet of this shape has."""
    shape = (1,) * (3 - len(shape)) + shape
    steps, rows, columns = int(torch.tensor(shape[:-2]).prod()), shape[-2], shape[-1]
    neighbours: tuple[tuple[int, int, int], ...]
    contexts: tuple[tuple[tuple[int, int], ...], ...]
    if steps > 1:
        neighbours, contexts = _BEFORE, _BEFORE_CONTEXTS
    elif rows > 1:
        neighbours, contexts = _AROUND, _AROUND_CONTEXTS
    else:
        neighbours, contexts = _BACK, _BACK_CONTEXTS
    if context.coarser:
        contexts = *contexts, *_COARSER_CONTEXTS
    return Plan(context.size, (steps, rows, columns), neighbours, contexts)


def _same_place(shape: Sequence[int], context: Context) -> Tensor:
    """Indices of the last two coarser levels at the place of each cell, (cells, 2) int64; -1 where there are none."""
    places = torch.full((*shape, 2), -1, dtype=torch.int64)
    for number, (grid, _) in enumerate(reversed(context.coarser[-2:])):
        if grid.ndim == len(shape) and grid.numel():
            for axis, cells in enumerate(grid.shape):
                first = context.start if axis == 0 else 0
                rows = (torch.arange(shape[axis]) + first) * cells // (context.whole or shape)[axis]
                grid = grid.index_select(axis, rows)
            places[..., number] = grid
    return places.reshape(-1, 2)

"""The compiled search for CPUs, where it was built: `python -m vqkit.kernels.native` builds it, and nothing needs it.

One call searches all groups or all levels in one parallel region, never forms the N x K matrix, and gives the codes of
the torch path: the float64 argmin. `docs/search.md` tells how; the sources are beside this file.
"""

import warnings
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from vqkit.kernels.native.build import library_path

_METRICS = ("euclidean", "dot", "cosine")  # in the order of search.h
MOST_CODES = 128  # of a row: kMostCodes in search.h
_SINGLE = (torch.float32, torch.float16, torch.bfloat16)


@cache
def variants() -> tuple[str, ...]:
    """Variants of the compiled search that this processor can run, the fastest first; none where it was not built.

    Built while this process runs, it is there in the next one.
    """
    path = library_path()
    if not path.exists():
        return ()
    try:
        torch.ops.load_library(path)
    except OSError as error:
        warnings.warn(
            f"the compiled search {path} cannot be loaded ({error}), so the torch path is taken: build it again with "
            "`python -m vqkit.kernels.native`, or delete the file"
        )
        return ()
    return tuple(torch.ops.vqkit_native.variants().split())


def variant() -> str | None:
    """The variant that a search takes ("avx512" instead of "amx" where codes are short); None where there is none."""
    return variants()[0] if variants() else None


def can_search(x: Tensor, codes: Tensor, k: int) -> bool:
    """Whether `search` takes these inputs: on the CPU, of single precision or less, for up to 128 codes of each
    row.
    """
    return k <= MOST_CODES and x.device.type == "cpu" and {x.dtype, codes.dtype} <= {*_SINGLE} and bool(variants())


def search(x: Tensor, codes: Tensor, valid: Tensor | None, metric: str, k: int) -> Tensor:
    """The k nearest codes of each row, best first, where `can_search` says so.

    Args:
        x: (G, N, D) rows.
        codes: (G, K, D), K >= 1.
        valid: (G, K) bool, codes that may win; None for all.
        metric: "euclidean", "dot" or "cosine".
        k: from 1 to `MOST_CODES`.

    Returns:
        (G, N, k) int64, -1 where fewer than k codes are usable.
    """
    rows, table = x.to(torch.float32).contiguous(), codes.to(torch.float32).contiguous()
    mask = None if valid is None else valid.contiguous()
    return torch.ops.vqkit_native.search(rows, [table], mask, _METRICS.index(metric), k, "")


def search_levels(x: Tensor, codebooks: Sequence[Tensor], metric: str) -> Tensor:
    """Nearest codes of each row (N, D) in S codebooks (K_s, D), each searched for what those before left over: (N, S)
    int64.
    """
    rows, *tables = [tensor[None].to(torch.float32).contiguous() for tensor in (x, *codebooks)]
    return torch.ops.vqkit_native.search(rows, tables, None, _METRICS.index(metric), 1, "")[0]


def mixing_encode(ranks: Tensor, coarser: Tensor, plan: Sequence[int]) -> Tensor:
    """`vqkit.bitstream.plain_mixing.encode`, where there are `variants`.

    Args:
        ranks: (cells,) int64.
        coarser: (cells, 2) int64.
        plan: its `numbers()`.

    Returns:
        (bytes,) uint8.
    """
    return torch.ops.vqkit_native.mixing_encode(ranks.contiguous(), coarser.contiguous(), torch.tensor(plan))


def mixing_decode(data: Tensor, coarser: Tensor, plan: Sequence[int]) -> Tensor:
    """`vqkit.bitstream.plain_mixing.decode`, where there are `variants`.

    Args:
        data: (bytes,) uint8.
        coarser: (cells, 2) int64.
        plan: its `numbers()`.

    Returns:
        (cells + 1,) int64: the ranks, and how many bytes they can take at most.
    """
    return torch.ops.vqkit_native.mixing_decode(data.contiguous(), coarser.contiguous(), torch.tensor(plan))

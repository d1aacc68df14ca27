"""Residual search: several codebooks, one after another, in one call."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vqkit.kernels import engines, native
from vqkit.kernels.bounds import result_dtype
from vqkit.kernels.nearest import Metric, check_rows_and_codes
from vqkit.kernels.operators import batched, operator


class ResidualNearest(NamedTuple):
    """Result of `residual_nearest`.

    Attributes:
        indices: (..., S) int64, the code chosen at each level, coarse first.
        quantized: (..., D) float32 (float64 where an input is), the sum of the chosen codes, added up level by level.
    """

    indices: Tensor
    quantized: Tensor


def residual_nearest(
    x: Tensor, codebooks: Sequence[Tensor], *, metric: Metric = "euclidean", impl: engines.Impl | None = None
) -> ResidualNearest:
    """Finds at each level the code that is nearest to what the levels before left over.

    Bit for bit the codes of a loop of `nearest` over the levels that subtracts the sum of the chosen codes from x.
    Where the compiled search was built, all levels are searched in one call, in which a block of rows and what is left
    of it stay in the cache; on a GPU with the fused kernels in one launch, for "euclidean" and "dot" and depths up to
    1024; elsewhere it is that loop. Nothing is differentiated.

    Args:
        x: (..., D) rows, floating point, any strides.
        codebooks: S tensors (K, D) on the device of x, coarse first, S >= 1; K may differ.
        metric: as in `nearest`; the codes are added up as they are, whatever the metric.
        impl: as in `nearest`.

    Returns:
        `ResidualNearest(indices (..., S), quantized (..., D))`. A row with a NaN or an infinity gets the indices that
        `nearest` gives it, at every level.

    Raises:
        ValueError: there is no codebook, a shape, dtype, device or the metric is wrong, or `impl` cannot run
            the call.

    Source: Zeghidour et al. 2021 (SoundStream, arXiv:2107.03312), algorithm 1.
    """
    if not codebooks:
        raise ValueError("codebooks is empty: expected at least one tensor (K, D)")
    for number, codes in enumerate(codebooks):
        name = f"codebooks[{number}]"
        if codes.ndim != 2:
            raise ValueError(f"{name} has shape {tuple(codes.shape)}, expected (K, D); pass one tensor for each level")
        check_rows_and_codes(x, codes, metric, name=name)
    dtype = result_dtype(x, *codebooks)
    rows = x.detach().reshape(-1, x.shape[-1]).to(dtype)
    tables = [codes.detach().to(dtype) for codes in codebooks]
    indices = torch.ops.vqkit.residual_nearest(rows, tables, metric, impl)
    quantized = torch.zeros_like(rows)
    for level, codes in enumerate(tables):
        quantized = quantized + codes[indices[:, level]]
    return ResidualNearest(indices.view(*x.shape[:-1], len(tables)), quantized.view(x.shape))


@operator("residual_nearest", lambda x, codebooks, *_: x.new_empty(x.shape[0], len(codebooks), dtype=torch.int64))
def _residual_nearest(x: Tensor, codebooks: Sequence[Tensor], metric: str, impl: str | None = None) -> Tensor:
    """Rows (N, D), S codebooks (K, D) -> (N, S) int64."""

    def unfit() -> str:
        from vqkit.kernels.gpu import residual as fused  # Triton is optional, and slow to import

        return fused.unfit(x, codebooks, metric)

    compiled = all(native.can_search(x, codes, 1) for codes in codebooks)
    engine = engines.choose("residual", (x, *codebooks), impl, compiled=compiled, unfit=unfit).engine
    if engine == "native":
        return native.search_levels(x, codebooks, metric)
    if engine == "triton":
        from vqkit.kernels.gpu import residual as fused

        return fused.search_levels(x, codebooks, metric)
    indices, total = [], torch.zeros_like(x)
    for codes in codebooks:
        found = torch.ops.vqkit.nearest((x - total)[None], codes[None], None, metric, 1, None, impl)
        indices.append(found[0, :, 0])
        total = total + codes[indices[-1]]
    return torch.stack(indices, dim=1)


batched("residual_nearest")

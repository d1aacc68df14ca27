"""Nearest-code search: one call, `nearest`, whatever runs behind it."""

from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vqkit.kernels import engines, gpu, native
from vqkit.kernels.bounds import MOST_PADDING, is_proven, result_dtype, tensor_core_error
from vqkit.kernels.operators import batched, operator
from vqkit.kernels.torch_search.float64_ties import unit_vectors
from vqkit.kernels.torch_search.search import nearest_indices
from vqkit.precision import widened, widest_dtype

Metric = Literal["euclidean", "dot", "cosine"]
Precision = Literal["exact", "high", "fast"]


class Nearest(NamedTuple):
    """Result of `nearest`. Each tensor is (...) for k = 1 and (..., k), best first, for k > 1, except the margin.

    Attributes:
        indices: int64, the chosen codes of each row, from 0 to K - 1; -1 where fewer than k codes are usable.
        scores: float32 (float64 where an input is) scores of the chosen codes, or None when not asked for: the squared
            distance for "euclidean", the dot product for "dot", the cosine for "cosine". NaN where the row is not
            finite and where the index is -1.
        margin: (...) of the dtype of scores, or None when not asked for: by how much the best code that was not chosen
            is worse than the last chosen one, in units of the score, at least 0. Infinite where there is no such code,
            NaN where the row is not finite or the index is -1.
    """

    indices: Tensor
    scores: Tensor | None
    margin: Tensor | None


class SearchPath(NamedTuple):
    """What `nearest` runs.

    Attributes:
        name: "torch", "native" and the variant for this processor, such as "native avx512", or "triton" and the
            architecture, such as "triton sm_90".
        precision: "exact" where the path finds the float64 argmin, "high" where that is not proven: the device has no
            float64, or its tensor cores round in an unknown way.
        reason: why it is taken and nothing faster.
    """

    name: str
    precision: Precision
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def nearest(
    x: Tensor,
    codes: Tensor,
    *,
    metric: Metric = "euclidean",
    k: int = 1,
    valid: Tensor | None = None,
    precision: Precision | None = None,
    return_scores: bool = False,
    return_margin: bool = False,
    impl: engines.Impl | None = None,
) -> Nearest:
    """Finds the k codes that are nearest to each row.

    By default the result is the float64 argmin (argmax for "dot" and "cosine") of the given values: the same for any
    batch size, split, number of threads, autocast state and `torch.set_float32_matmul_precision` (which slows it down
    when it is not "highest", as the products are then formed in float64). Float16 and bfloat16 inputs are taken at
    their exact values. Nothing is differentiated: recompute from `codes[indices]` what needs a gradient. Memory is
    O((N + K) D + N k). `docs/search.md` derives all this and tells what is not covered.

    - Ties go to the lowest index; codes that float64 cannot tell apart for a row (whose scores agree to about D * 1e-15
      of the codes' distance times the row's) are ties, so equal codes and symmetric grids have one defined answer.
      With k > 1 the same rule picks the best of the codes that are left, k times over.
    - A code with a NaN or an infinity never wins. Where all valid codes have one, the first index is that of the
      lowest valid code.
    - A row with a NaN or an infinity ties with everything: it gets the lowest usable indices, and score NaN.
    - "cosine" divides both sides by their norms; a zero row or code has similarity 0 to everything, so that a zero row
      gets the lowest usable indices.

    Args:
        x: (..., D) rows, floating point, any strides; there may be none. With groups (G, ..., D).
        codes: (K, D) code vectors, floating point, K >= 1, on the device of x; or (G, K, D), G codebooks that are
            searched independently, each by the rows of its group.
        metric: "euclidean" (smallest distance), "dot" (largest dot product) or "cosine" (largest cosine).
        k: how many codes, from 1 to K.
        valid: (K,) or (G, K) bool, codes that may win, at least one in each group; None for all. That there is one is
            checked by reading the mask, which waits for the device.
        precision: "exact": the float64 argmin. "high": codes are compared by scores with about the error of float32,
            and in float64 only where those are equal, which is faster on data that such scores cannot separate; near
            ties may then depend on the batch size. "fast": scores of numbers rounded to bfloat16 where tensor cores
            form them, else as "high". None: the best that the fastest path of the device can prove (`search_path`).
            This is a lower bound: float64 inputs are searched in float64 in any case, and the compiled
            search for CPUs is exact in any case.
        return_scores: also return the scores of the chosen codes.
        return_margin: also return the margin to the next best code.
        impl: the engine that runs it, for tests and comparisons: "torch", "native" (the compiled search, on a CPU) or
            "triton" (the fused kernels, on an NVIDIA GPU). None: the fastest that may be trusted (`search_path`).

    Returns:
        `Nearest(indices, scores, margin)`; indices and scores are (...) for k = 1 and (..., k) for k > 1.

    Raises:
        ValueError: a shape, dtype, device, metric, k or precision is wrong, a group has no valid code, or `impl` cannot
            run the call.

    Source: the exact search of the VQ assignment, van den Oord et al. 2017, arXiv:1711.00937, eq. 1.
    """
    check_rows_and_codes(x, codes, metric)
    if not (k == 1 <= codes.shape[-2] and valid is None and precision is None):
        _check_options(x, codes, k, valid, precision)
    x, codes = x.detach(), codes.detach()
    grouped = codes.ndim == 3
    rows = x.reshape(codes.shape[0] if grouped else 1, -1 if x.numel() else _rows_per_group(x, grouped), x.shape[-1])
    books = codes if grouped else codes[None]
    mask = valid if valid is None or grouped else valid[None]
    number = codes.shape[-2]
    wanted = min(k + 1, number) if return_margin else k
    found = torch.ops.vqkit.nearest(rows, books, mask, metric, wanted, precision, impl)
    shape = x.shape[:-1]
    indices = found[..., :k]
    scores = margin = None
    if return_scores:
        scores = _scores(rows, books, indices, metric).to(result_dtype(x, codes)).view(*shape, k)
        scores = scores.squeeze(-1) if k == 1 else scores
    if return_margin:
        margin = _margins(rows, books, found, metric, k).to(result_dtype(x, codes)).view(shape)
    indices = indices.reshape(*shape, k)
    return Nearest(indices.squeeze(-1) if k == 1 else indices, scores, margin)


def search_path(device: torch.device | str, dtype: torch.dtype = torch.float32) -> SearchPath:
    """The path that `nearest` takes for one code a row, the precision that it can prove, and why it is that one.

    Args:
        device: of the rows and codes.
        dtype: of the rows and codes.

    Returns:
        `SearchPath(name, precision, reason)`; as text "name: reason".
    """
    device = torch.device(device)
    probe = torch.empty(1, 1, 1, device=device, dtype=dtype)
    compiled, unfit = native.can_search(probe, probe, 1), partial(_unfit, probe, 1, None)
    engine, reason = engines.choose("nearest", (probe, probe), None, compiled=compiled, unfit=unfit)
    if engine == "native":
        return SearchPath(f"native {native.variant()}", "exact", reason)
    if engine == "triton":
        return SearchPath(f"triton sm_{gpu.architecture(device)}", _provable(device), reason)
    return SearchPath("torch", "exact" if widest_dtype(device) == torch.float64 else "high", reason)


def _rows_per_group(x: Tensor, grouped: bool) -> int:
    """Rows of each group where there are none in some dimension, which `reshape` cannot work out."""
    number = 1
    for size in x.shape[1 if grouped else 0 : -1]:
        number *= size
    return number


def check_rows_and_codes(x: Tensor, codes: Tensor, metric: str, *, name: str = "codes") -> None:
    """Raises ValueError where rows (..., D), the codes that the caller calls `name`, or the metric cannot be meant."""
    for own_name, tensor in (("x", x), (name, codes)):
        if not tensor.is_floating_point():
            raise ValueError(
                f"{own_name} has dtype {tensor.dtype}, expected a floating point one; use {own_name}.float()."
            )
    if codes.ndim not in (2, 3) or 0 in codes.shape:
        raise ValueError(
            f"{name} has shape {tuple(codes.shape)}, expected (K, D) or (G, K, D) with K >= 1 and D >= 1; pass one row "
            "for each code."
        )
    if x.ndim == 0 or x.shape[-1] != codes.shape[-1]:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, expected (..., {codes.shape[-1]}) to match {name} of shape "
            f"{tuple(codes.shape)}; move the channel to the last axis."
        )
    if codes.ndim == 3 and (x.ndim < 2 or x.shape[0] != codes.shape[0]):
        raise ValueError(
            f"x has shape {tuple(x.shape)}, expected ({codes.shape[0]}, ..., {codes.shape[-1]}) to match {name} of "
            f"shape {tuple(codes.shape)}; move the group to the first axis."
        )
    if x.device != codes.device:
        raise ValueError(f"{name} is on {codes.device}, expected {x.device} as x; use {name}.to(x.device).")
    if metric not in ("euclidean", "dot", "cosine"):
        raise ValueError(f"metric is {metric!r}, expected 'euclidean', 'dot' or 'cosine'; choose one of these.")


def _check_options(x: Tensor, codes: Tensor, k: int, valid: Tensor | None, precision: str | None) -> None:
    if not 1 <= k <= codes.shape[-2]:
        raise ValueError(f"k is {k}, expected 1 to {codes.shape[-2]}, the number of codes; ask for fewer.")
    if precision not in ("exact", "high", "fast", None):
        raise ValueError(f"precision is {precision!r}, expected 'exact', 'high', 'fast' or None; choose one of these.")
    if precision == "exact" and widest_dtype(x.device) != torch.float64:
        raise ValueError(f"precision is 'exact', but {x.device} has no float64 to prove it; pass None or 'high'.")
    if valid is not None and (
        valid.dtype != torch.bool or valid.shape != codes.shape[:-1] or valid.device != codes.device
    ):
        raise ValueError(
            f"valid has shape {tuple(valid.shape)}, dtype {valid.dtype} and is on {valid.device}, expected "
            f"{tuple(codes.shape[:-1])}, torch.bool and {codes.device}; pass one flag for each code."
        )


def _scores(x: Tensor, codes: Tensor, indices: Tensor, metric: str) -> Tensor:
    """Scores (G, N, k) of codes (G, K, D) for rows (G, N, D) at indices (G, N, k), summed in float64.

    NaN where the row or the code is not finite or the index is negative.
    """
    rows, found = _wide(x, metric), []
    for place in indices.unbind(-1):
        chosen = _chosen(codes, place, metric)
        scores = ((rows - chosen).square() if metric == "euclidean" else rows * chosen).sum(-1)
        found.append(torch.where(torch.isfinite(scores) & (place >= 0), scores, torch.nan))
    return torch.stack(found, -1)


def _margins(x: Tensor, codes: Tensor, found: Tensor, metric: str, k: int) -> Tensor:
    """By how much code k + 1 of found (G, N, k or k + 1) is worse than code k: (G, N), infinite where there is none.

    The difference is formed before it is summed, so that a margin far below the scores keeps its digits. NaN where the
    score of code k is.
    """
    rows = _wide(x, metric)
    margin = torch.full_like(rows[..., 0], torch.inf)
    if found.shape[-1] > k:
        last, other = (_chosen(codes, found[..., place], metric) for place in (k - 1, k))
        terms = (last - other) * (2 * rows - last - other if metric == "euclidean" else rows)
        margin = torch.where(found[..., k] >= 0, terms.sum(-1).clamp(min=0), torch.inf)
    return margin + 0 * _scores(x, codes, found[..., k - 1 : k], metric)[..., 0]


def _wide(vectors: Tensor, metric: str) -> Tensor:
    return unit_vectors(widened(vectors)) if metric == "cosine" else widened(vectors)


def _chosen(codes: Tensor, place: Tensor, metric: str) -> Tensor:
    """The vectors (G, N, D) of codes (G, K, D) at indices (G, N); a negative index reads the first code."""
    first = codes.shape[1] * torch.arange(codes.shape[0], device=codes.device)[:, None]
    return _wide(codes.flatten(0, 1)[place.clamp(min=0) + first], metric)


@operator("nearest", lambda x, codes, valid, metric, k, *_: x.new_empty((*x.shape[:2], k), dtype=torch.int64))
def _nearest(
    x: Tensor, codes: Tensor, valid: Tensor | None, metric: str, k: int, precision: str | None, impl: str | None = None
) -> Tensor:
    """(G, N, D), (G, K, D), (G, K) -> (G, N, k) int64."""
    if valid is not None and not valid.any(-1).all():  # here, where there are values, whoever traces or batches
        raise ValueError("valid is False for all codes of a group, expected at least one True; leave such groups out.")
    compiled, unfit = native.can_search(x, codes, k), partial(_unfit, x, k, precision)
    engine = engines.choose("nearest", (x, codes), impl, compiled=compiled, unfit=unfit).engine
    if engine == "native":
        return native.search(x, codes, valid, metric, k)
    if engine == "triton":
        from vqkit.kernels.gpu import nearest as fused  # Triton is optional, and slow to import

        return fused.nearest(x, codes, valid, metric, precision or _provable(x.device)).unsqueeze(-1)
    return nearest_indices(x, codes, valid, metric, k, precision)


def _unfit(x: Tensor, k: int, precision: str | None) -> str:
    """Why the fused kernels do not take a call on a GPU; "" where they do."""
    if k > 1:
        return f"the fused kernels find one code a row, not {k}"
    exact = (precision or _provable(x.device)) == "exact"
    error = tensor_core_error(gpu.architecture(x.device), x.shape[-1] + MOST_PADDING, products=3)
    return f"no error bound covers {x.shape[-1]} dimensions there" if exact and error == torch.inf else ""


def _provable(device: torch.device) -> Precision:
    """What the fused kernels can prove on a GPU."""
    return "exact" if is_proven(gpu.architecture(device)) else "high"


def _nearest_batched(  # type: ignore[no-untyped-def]
    info, in_dims, x: Tensor, codes: Tensor, valid: Tensor | None, *options
) -> tuple[Tensor, int]:
    """A batch of rows alone becomes more rows, a batch of codebooks more groups."""
    x_dim, codes_dim, valid_dim = in_dims[:3]
    if codes_dim is None and valid_dim is None:
        rows = x.movedim(x_dim, 1)
        found = torch.ops.vqkit.nearest(rows.flatten(1, 2), codes, valid, *options)
        return found.unflatten(1, rows.shape[1:3]), 1
    x, codes = _batch_first(x, x_dim, info.batch_size), _batch_first(codes, codes_dim, info.batch_size)
    if valid is not None:
        valid = _batch_first(valid, valid_dim, info.batch_size).flatten(0, 1)
    found = torch.ops.vqkit.nearest(x.flatten(0, 1), codes.flatten(0, 1), valid, *options)
    return found.unflatten(0, x.shape[:2]), 0


def _batch_first(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


batched("nearest", _nearest_batched)

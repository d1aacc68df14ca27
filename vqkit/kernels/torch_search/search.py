"""Nearest-code search in plain torch: float32 with a certificate, float64 for the rows that it cannot decide.

Every metric is the minimum over codes k of `score = bias_k - x . e_k` (N rows x, K codes e of depth D):

    euclidean   bias = 0.5 |e|^2     x and e less a centre (|x|^2 is the same for all k and is never added); the
                                     centre is one float32 vector, so that subtracting it is a single rounding
    dot         bias = 0             e less a centre (it shifts all scores of a row alike)
    cosine      bias = 0             e / |e| (the length of x scales all scores of a row alike)

A row whose best codes lie farther apart than twice the bound on the rounding error is certain to be right, whatever
the order of additions: batch size, number of threads, alignment and BLAS have no say. The other rows (about one in a
thousand; all of them for duplicated codes) are searched again in float64, where scores that agree to within rounding
count as tied. `docs/search.md` has the derivation.
"""

import torch
from torch import Tensor

from vqkit.kernels.matmul_precision import product_is_lowered
from vqkit.kernels.torch_search.float32_scan import CodeTiles, centre_of, near_codes, scan
from vqkit.kernels.torch_search.float64_ties import MANY, search_rows, select


def nearest_indices(x: Tensor, codes: Tensor, valid: Tensor | None, metric: str, k: int, precision: str) -> Tensor:
    """Indices of the k best codes of each row, best first.

    Args:
        x: (G, N, D), floating point, any strides, N may be 0.
        codes: (G, K, D), floating point, K >= 1.
        valid: (G, K) bool or None.
        metric: "euclidean", "dot" or "cosine".
        k: 1 to K.
        precision: "exact" or "high".

    Returns:
        (G, N, k) int64.
    """
    indices = torch.empty(*x.shape[:2], k, dtype=torch.int64, device=x.device)
    if indices.numel():
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            for group, rows in enumerate(x):
                mask = None if valid is None else valid[group]
                indices[group] = _search(rows, codes[group], mask, metric, k, precision == "exact")
    return indices


def _search(x: Tensor, codes: Tensor, valid: Tensor | None, metric: str, k: int, proof: bool) -> Tensor:
    if torch.float64 in (x.dtype, codes.dtype) or product_is_lowered(x.device):
        return search_rows(x, codes, valid, centre_of(codes, metric), metric, k)
    tiles = CodeTiles(codes, valid, metric)
    indices, gaps, kth, error = scan(x, tiles, k)
    certain = (gaps > (2 if proof else 0) * error).all(0)  # False where anything is NaN, as 0 * inf is
    rows = torch.nonzero(~certain).squeeze(1)
    if len(rows):
        indices[rows] = _repair(x[rows], tiles, k, (kth + 2 * error)[rows])
    return indices


def _repair(x: Tensor, tiles: CodeTiles, k: int, limit: Tensor) -> Tensor:
    """Indices (R, k) in float64 of rows whose float32 scores up to a limit (R,) may belong to the best codes."""
    code, row, crowded = near_codes(x, tiles, limit, MANY * k)
    indices = select(x, tiles.codes, code, row, tiles.metric, k)
    rows = torch.nonzero(crowded).squeeze(1)
    if len(rows):
        indices[rows] = search_rows(x[rows], tiles.codes, tiles.valid, tiles.centre, tiles.metric, k)
    return indices

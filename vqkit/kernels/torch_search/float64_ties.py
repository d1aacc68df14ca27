"""Search of the rows that float32 cannot decide, in float64.

The candidates of a row are the codes that its k-th best score, with all rounding errors counted, does not exclude.
Each is compared with one of them, the reference, by the difference of their scores: a sum over the row and two codes,
which has an error bound of its own and loses nothing where the data lie far from the origin. Candidates whose error
intervals reach below the best one's upper end are tied, and the lowest index wins. So the result depends neither on the
order in which a product adds nor on what else is searched in the same call.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from vqkit.kernels.bounds import score_error, tie_error
from vqkit.precision import widened, widest_dtype

BLOCK_SCORES = 2**21  # scores that are held at once (one row's at least)
PAIR_NUMBERS = 2**19  # numbers of the rows and codes that are compared one by one
FILTER = 32  # bounds on the error of a float64 score that a candidate may lie above the k-th best: docs/search.md
MANY = 32  # candidates of a row, for each of its k codes: with more, equal codes are looked for


def unit_vectors(vectors: Tensor) -> Tensor:
    """Vectors (..., D) over their norms; zero stays zero."""
    return torch.nn.functional.normalize(vectors, dim=-1, eps=torch.finfo(vectors.dtype).tiny)


def search_rows(x: Tensor, codes: Tensor, valid: Tensor | None, centre: Tensor, metric: str, k: int) -> Tensor:
    """The k best codes of each row, the lowest index among those that tie; candidates from a float64 product.

    Args:
        x: (N, D), finite or not.
        codes: (K, D).
        valid: (K,) bool or None.
        centre: (D,) float32 vector that rows and codes are measured from.
        metric: "euclidean", "dot" or "cosine".
        k: at least 1, at most K.

    Returns:
        (N, k) int64; -1 where fewer than k codes are usable. A row that is not finite has the lowest usable indices;
        where no code is usable, the first index is that of the lowest valid code.
    """
    wide = widest_dtype(x.device)
    usable = _finite(codes) if valid is None else _finite(codes) & valid
    vectors = unit_vectors(codes.to(wide)) if metric == "cosine" else codes.to(wide) - centre
    vectors.masked_fill_(~usable[:, None], 0)
    norms = torch.linalg.vector_norm(vectors, dim=1)
    half = 0.5 if metric == "euclidean" else 0.0
    bias = torch.where(usable, half * norms.square(), torch.inf)[:, None]
    # Rows that tie with every code have their answer: comparing all codes for them would cost N x K x D.
    ordinary = _finite(x) if metric == "euclidean" else _finite(x) & (x != 0).any(1)
    indices = _lowest(usable, valid, k).expand(len(x), k).clone()
    found, surplus = [indices[:0]], None
    for rows in x[ordinary].split(max(1, BLOCK_SCORES // len(codes))):
        y = rows.to(wide) - centre if metric == "euclidean" else rows.to(wide)
        scores = torch.addmm(bias, vectors, y.T, alpha=-1)
        kth = scores.amin(0) if k == 1 else scores.topk(k, dim=0, largest=False).values[-1]
        reach = FILTER * score_error(y, norms.amax(), kth, metric)
        limit = torch.where(reach < torch.inf, kth + reach, torch.inf)
        code, row = torch.nonzero((scores <= limit) & usable[:, None], as_tuple=True)
        if len(code) > MANY * k * len(rows):
            surplus = _surplus_copies(vectors, usable, k) if surplus is None else surplus
            code, row = code[~surplus[code]], row[~surplus[code]]
        found.append(select(rows, codes, code, row, metric, k))
    chosen = torch.cat(found)
    indices[ordinary] = torch.where(chosen[:, :1] >= 0, chosen, indices[ordinary])
    return indices


def _finite(rows: Tensor) -> Tensor:
    return torch.isfinite(rows.amax(1)) & torch.isfinite(rows.amin(1))


def _lowest(usable: Tensor, valid: Tensor | None, k: int) -> Tensor:
    """(k,) indices of the lowest usable codes, then -1; the lowest valid one where none is usable."""
    order = usable.to(torch.uint8).sort(descending=True, stable=True).indices[:k]
    lowest = torch.where(usable[order], order, -1)
    first = torch.zeros_like(order[0]) if valid is None else valid.to(torch.uint8).argmax()
    lowest[0] = torch.where(usable.any(), lowest[0], first)
    return lowest


def _surplus_copies(vectors: Tensor, usable: Tensor, k: int) -> Tensor:
    """(K,) bool: usable codes that equal k earlier usable ones, so that they are never among the k best."""
    places = torch.nonzero(usable).squeeze(1)  # the others are zeros here, as a usable code may be
    vectors = vectors[places]
    weights = torch.arange(1, vectors.shape[1] + 1, device=vectors.device).sqrt()
    order = (vectors * weights).sum(1).sort(stable=True).indices  # equal vectors have equal keys
    ordered = vectors[order]
    new = torch.ones_like(order, dtype=torch.bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(1)
    place = torch.arange(len(order), device=order.device)
    copies = place - torch.where(new, place, 0).cummax(0).values >= k
    return torch.zeros_like(usable).index_put_((places[order],), copies)


def select(x: Tensor, codes: Tensor, code: Tensor, row: Tensor, metric: str, k: int) -> Tensor:
    """The best of the candidate pairs (code (P,), row (P,)) for each row (R, D), ties to the lowest, k times over.

    Returns:
        (R, k) int64, -1 where a row has fewer candidates.
    """
    missing = len(codes)
    scores = _by_pairs(_pair_scores, metric, x, row, codes, code)[0]
    best = scores.new_full((len(x),), torch.inf).scatter_reduce_(0, row, scores, "amin")
    reference = _lowest_index(code, row, scores <= best[row], len(x), missing).clamp(max=missing - 1)
    difference, size = _by_pairs(_pair_differences, metric, x, row, codes, code, codes, reference[row])
    error = tie_error(x.shape[1], size.dtype) * size
    upper, lower = difference + error, difference - error
    chosen = []
    while True:
        least = best.fill_(torch.inf).scatter_reduce_(0, row, upper, "amin")
        first = _lowest_index(code, row, (lower <= least[row]) & (lower < torch.inf), len(x), missing)
        chosen.append(torch.where(first < missing, first, -1))
        if len(chosen) == k:
            return torch.stack(chosen, 1)
        taken = code == first[row]
        upper, lower = upper.masked_fill(taken, torch.inf), lower.masked_fill(taken, torch.inf)


def _lowest_index(code: Tensor, row: Tensor, among: Tensor, rows: int, missing: int) -> Tensor:
    """(R,) the smallest code of each row's pairs that are among those asked for; `missing` where there is none."""
    lowest = code.new_full((rows,), missing)
    return lowest.scatter_reduce_(0, row, torch.where(among, code, missing), "amin")


def _by_pairs(function: Callable[..., tuple[Tensor, ...]], metric: str, *sources: Tensor) -> list[Tensor]:
    """Applies a function to `source[index]` of each source (rows, D) and the index (P,) after it, a few at a time."""
    tensors, indices = sources[::2], sources[1::2]
    parts = [index.split(max(1, PAIR_NUMBERS // tensors[0].shape[1])) for index in indices]
    results = [
        function(metric, *(widened(tensor[index]) for tensor, index in zip(tensors, part, strict=True)))
        for part in zip(*parts, strict=True)
    ]
    return [torch.cat(part) for part in zip(*results, strict=True)]


def _pair_scores(metric: str, x: Tensor, codes: Tensor) -> tuple[Tensor]:
    """Scores (P,) of rows (P, D) and codes (P, D), less is better."""
    if metric == "euclidean":
        return ((x - codes).square().sum(1),)
    return (-(x * (unit_vectors(codes) if metric == "cosine" else codes)).sum(1),)


def _pair_differences(metric: str, x: Tensor, codes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """By how much codes (P, D) are worse than others for rows (P, D), and the size that the rounding error is relative
    to: both (P,).
    """
    if metric == "euclidean":
        step, one, two = codes - others, codes - x, others - x
        return (step * (one + two)).sum(1), (step.abs() * (one.abs() + two.abs())).sum(1)
    if metric == "dot":
        step = others - codes
        return (step * x).sum(1), (step * x).abs().sum(1)
    return _cosine_differences(x, codes, others)


def _cosine_differences(x: Tensor, codes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """By how much |x| cos(x, others) exceeds |x| cos(x, codes), and its size: both (P,).

    With s the shorter and l the longer of the two, and d = l - s, the difference of l/|l| and s/|s| is
    (d - s d.(l + s) / ((|l| + |s|) |s|)) / |l|: in proportion to d, so that nothing is lost where both are alike.
    """
    lengths = torch.linalg.vector_norm(codes, dim=1), torch.linalg.vector_norm(others, dim=1)
    shorter, longer = torch.minimum(*lengths), torch.maximum(*lengths).clamp(min=torch.finfo(x.dtype).tiny)
    scale = torch.where(shorter > 0, 1 / ((longer + shorter) * shorter), 0)  # a code of length 0 has the cosine 0
    first = (lengths[0] < lengths[1])[:, None]
    short, long = torch.where(first, codes, others), torch.where(first, others, codes)
    step = long - short
    along = (step * (long + short)).sum(1) * scale
    size = (step.abs() * (long.abs() + short.abs())).sum(1) * scale
    difference = ((x * step).sum(1) - (x * short).sum(1) * along) / longer
    return (
        torch.where(first[:, 0], difference, -difference),
        ((x * step).abs().sum(1) + (x * short).abs().sum(1) * size) / longer,
    )

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

A tile holds the scores of some codes (down) and some rows (across), so that the minimum over a group of codes is a
vectorized `amin`; `min` with indices is ten times slower and looks at one score in GROUP only.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from vqkit.kernels.bounds import product_is_lowered, score_error
from vqkit.kernels.torch_search.float64_ties import MANY, search_rows, select, unit_vectors
from vqkit.precision import widest_dtype

GROUP = 32  # codes per group minimum
TILE_SCORES = 2**19  # scores of a tile for each thread (it should stay in cache), at most four times as many in all
TILE_CODES = 2**11  # of a tile, a multiple of GROUP; four times as many where they are short: measured on two CPU cores
FEWEST_ROWS = 128  # of a tile, for each thread
FEW_NUMBERS = 2**15  # of the codes that are held in float64 at once
SAMPLE = 15  # codes that the centre is the median of
FAR = 2.0**100  # a centre beyond would let x - centre overflow


def nearest_indices(
    x: Tensor, codes: Tensor, valid: Tensor | None, metric: str, k: int, precision: str | None
) -> Tensor:
    """Indices of the k best codes of each row, best first.

    Args:
        x: (G, N, D), floating point, any strides, N may be 0.
        codes: (G, K, D), floating point, K >= 1.
        valid: (G, K) bool or None.
        metric: "euclidean", "dot" or "cosine".
        k: 1 to K.
        precision: "exact", "high" (as is "fast"), or None for "exact" where the device has float64.

    Returns:
        (G, N, k) int64.
    """
    indices = torch.empty(*x.shape[:2], k, dtype=torch.int64, device=x.device)
    wide = torch.float64 in (x.dtype, codes.dtype) or product_is_lowered(x.device)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        for group, rows in enumerate(x if indices.numel() else []):
            tiles = CodeTiles(codes[group], None if valid is None else valid[group], metric)
            if wide:
                indices[group] = search_rows(rows, tiles.codes, tiles.valid, tiles.centre, metric, k)
                continue
            y = rows.to(torch.float32) - tiles.centre if metric == "euclidean" else rows.to(torch.float32)
            best = scan(y, tiles, k)
            indices[group] = best.indices
            needed = 2 if precision == "exact" or (precision is None and tiles.wide == torch.float64) else 0
            certain = (best.gaps > needed * best.error).all(0)  # False where anything is NaN, as 0 * inf is
            left = torch.nonzero(~certain).squeeze(1)
            if len(left):
                indices[group, left] = repair(rows[left], y[left], tiles, k, (best.kth + 2 * best.error)[left])
    return indices


def repair(x: Tensor, y: Tensor, tiles: "CodeTiles", k: int, limit: Tensor) -> Tensor:
    """Indices (R, k), in float64, of rows whose float32 scores up to a limit may belong to the best codes.

    Args:
        x: (R, D) rows as they are.
        y: (R, D) rows as scores are formed from them.
        tiles: the codes.
        k: how many codes.
        limit: (R,).
    """
    code, row, crowded = near_codes(y, tiles, limit, MANY * k)
    indices = select(x, tiles.codes, code, row, tiles.metric, k)
    rows = torch.nonzero(crowded).squeeze(1)
    if len(rows):
        indices[rows] = search_rows(x[rows], tiles.codes, tiles.valid, tiles.centre, tiles.metric, k)
    return indices


class BestScores(NamedTuple):
    """What float32 scores tell about N rows.

    Attributes:
        indices: (N, k) of the best codes, best first.
        gaps: (k, N) by how much the computed score of each is smaller than the next one's.
        kth: (N,) computed score of the last.
        error: (N,) bound on the error of a computed score; infinite or NaN where a score may overflow.
    """

    indices: Tensor
    gaps: Tensor
    kth: Tensor
    error: Tensor


class CodeTile(NamedTuple):
    """Some codes as the product needs them.

    Attributes:
        vectors: (C, D) float32; C is a multiple of GROUP.
        bias: (C, 1) float32; infinite for what must not win.
        largest: () float32, the largest norm of a usable code.
    """

    vectors: Tensor
    bias: Tensor
    largest: Tensor


class CodeTiles:
    """The codes as a float32 product needs them, formed a tile at a time.

    Args:
        codes: (K, D).
        valid: (K,) bool or None.
        metric: "euclidean", "dot" or "cosine".

    Attributes:
        centre: (D,), from `centre_of`.
        size: codes of a tile.
        rows: of a tile of scores, at most.
        wide: the dtype in which decisions are made.
    """

    def __init__(self, codes: Tensor, valid: Tensor | None, metric: str) -> None:
        self.codes, self.valid, self.metric = codes, valid, metric
        self.centre = centre_of(codes, metric)
        self.size = min(TILE_CODES * (4 if codes.shape[1] < 32 else 1), len(codes) + -len(codes) % GROUP)
        self.rows = max(FEWEST_ROWS, TILE_SCORES // self.size) * min(torch.get_num_threads(), 4)
        self.wide = widest_dtype(codes.device)
        self._buffer = codes.new_empty(self.size, codes.shape[1], dtype=torch.float32)
        self._formed: tuple[int, CodeTile] | None = None  # the last one, which the next is written over

    def __getitem__(self, start: int) -> CodeTile:
        """The tile of the codes from `start` on.

        What must not win has bias inf: padding, codes that are not valid or not finite, and codes whose bias overflows.
        The latter count in the largest norm, so that the bound is infinite for each row that they could win.
        """
        if self._formed is not None and self._formed[0] == start:
            return self._formed[1]
        tile = self.codes[start : start + self.size]
        number = len(tile)
        vectors = self._buffer[: number + -number % GROUP]
        vectors[number:] = torch.nan  # as a code that is not finite
        if self.metric == "cosine":
            vectors[:number] = unit_vectors(tile.to(self.wide))
        else:
            torch.sub(tile, self.centre, out=vectors[:number])
        squares = []
        for part in vectors.split(max(1, FEW_NUMBERS // vectors.shape[1])):
            wide = part.to(self.wide)  # of a few at a time: a copy of all would not stay in cache
            squares.append(torch.linalg.vecdot(wide, wide))
        square = torch.cat(squares)
        if self.valid is not None:
            square[:number].masked_fill_(~self.valid[start : start + self.size], torch.nan)
        half = 0.5 if self.metric == "euclidean" else 0.0
        bias = (half * square).nan_to_num_(torch.inf, torch.inf).to(torch.float32)
        largest = square.nan_to_num_(0, 0).amax().sqrt().to(torch.float32)
        self._formed = start, CodeTile(vectors.nan_to_num_(0, 0, 0), bias[:, None], largest)
        return self._formed[1]


def centre_of(codes: Tensor, metric: str) -> Tensor:
    """(D,) float32 vector that rows and codes are measured from; it decides how much float32 can tell, not the result.

    The median of a few codes, so that one far out, or one that is not finite, does not move it; 0 where even the median
    is huge, so that code - centre is finite exactly where the code is.
    """
    if metric == "cosine":  # unit vectors have no offset worth a second pass over the codes
        return codes.new_zeros(codes.shape[1], dtype=torch.float32)
    sample = codes[:: -(-len(codes) // SAMPLE)].to(torch.float32)
    median = sample.topk(len(sample) // 2 + 1, dim=0, largest=False).values[-1]
    return torch.where(median.abs() < FAR, median, 0)


def scan(x: Tensor, tiles: CodeTiles, k: int) -> BestScores:
    """The k best codes of each row (N, D), N >= 1, by float32 scores; rows as scores are formed from them."""
    number = len(x)
    rows = min(number, tiles.rows)
    values = x.new_full((k + 1, number), torch.inf)
    indices = torch.zeros(k if k == 1 else k + 1, number, dtype=torch.int64, device=x.device)
    buffer = x.new_empty(tiles.size * rows)
    merge = _merge_two if k == 1 else _merge_many
    largest = x.new_zeros(())
    for start in range(0, len(tiles.codes), tiles.size):
        vectors, bias, norm = tiles[start]
        largest = torch.maximum(largest, norm)
        for row in range(0, number, rows):
            part = slice(row, min(row + rows, number))
            scores = buffer[: len(vectors) * (part.stop - row)].view(len(vectors), -1)
            torch.addmm(bias, vectors, x[part].T, alpha=-1, out=scores)
            merge(values[:, part], indices[:, part], scores, start)
    error = score_error(x, largest, values[-2], tiles.metric)
    return BestScores(indices[:k].T, values[1:] - values[:-1], values[-2], error)


def near_codes(x: Tensor, tiles: CodeTiles, limit: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """All codes of each row (R, D) whose float32 score is at most its limit (R,); rows as scores are formed from them.

    Returns:
        code (P,) and row (P,) of the pairs, and crowded (R,) bool: rows left out, whose limit is not finite or that
        have more than about `most` such codes.
    """
    bounded = limit < torch.inf
    limit, count = torch.where(bounded, limit, -torch.inf), torch.where(bounded, 0, most + 1)
    pairs = []
    for start in range(0, len(tiles.codes), tiles.size):
        vectors, bias, _ = tiles[start]
        for first in range(0, len(x), tiles.rows):
            part = slice(first, first + tiles.rows)
            near = torch.addmm(bias, vectors, x[part].T, alpha=-1) <= limit[part]
            pair = torch.nonzero(near)
            if len(pair) > most:  # or else no row has more
                count[part] += near.sum(0)
                pair = torch.nonzero(near & (count[part] <= most))
            pairs.append((pair[:, 0] + start, pair[:, 1] + first))
    code, row = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    crowded = count > most
    kept = ~crowded[row]
    return code[kept], row[kept], crowded


def _merge_two(values: Tensor, indices: Tensor, scores: Tensor, start: int) -> None:
    """Updates the two best values (2, R) and the index of the best (1, R) by the scores (C, R) of codes from start."""
    groups = scores.view(-1, GROUP, scores.shape[1])
    minima = groups.amin(1)
    value, group = minima.min(0)
    runner_up = minima.scatter_(0, group[None], torch.inf).amin(0)
    members = groups.gather(0, group.expand(1, GROUP, -1))[0]
    member = members.min(0).indices
    runner_up = torch.minimum(runner_up, members.scatter_(0, member[None], torch.inf).amin(0))
    best, second = values
    indices[0] = torch.where(value < best, group * GROUP + member + start, indices[0])
    torch.minimum(second, torch.minimum(runner_up, torch.maximum(value, best)), out=second)
    torch.minimum(best, value, out=best)


def _merge_many(values: Tensor, indices: Tensor, scores: Tensor, start: int) -> None:
    """Updates the best values (k + 1, R), ascending, and their indices (k + 1, R) by the scores (C, R)."""
    count = len(values)
    scores.nan_to_num_(torch.inf, torch.inf, -torch.inf)  # of codes that overflow; `topk` would drop their groups
    if count * GROUP < len(scores):
        best, place = _best_by_group(scores, count)
    else:
        best, place = scores.topk(min(count, len(scores)), dim=0, largest=False)
    best, order = torch.cat([values, best]).topk(count, dim=0, largest=False)
    indices.copy_(torch.cat([indices, place + start]).gather(0, order))
    values.copy_(best)


def _best_by_group(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The smallest scores (count, R) of (C, R) and their places: they lie in the groups of the smallest minima."""
    groups = scores.view(-1, GROUP, scores.shape[1])
    group = groups.amin(1).topk(count, dim=0, largest=False).indices
    members = groups.gather(0, group[:, None].expand(-1, GROUP, -1)).view(-1, scores.shape[1])
    best, place = members.topk(count, dim=0, largest=False)
    return best, group.gather(0, place // GROUP) * GROUP + place % GROUP

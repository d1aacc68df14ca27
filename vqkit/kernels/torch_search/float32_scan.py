"""The float32 pass of the search: scores in tiles, and the best few codes of each row, with proof or without.

A tile holds the scores of some codes (down) and some rows (across), so that the minimum over a group of codes is a
vectorized `amin`; `min` with indices is ten times slower and looks at one score in GROUP only.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from vqkit.kernels.matmul_precision import widest_dtype
from vqkit.kernels.rounding import row_norms, score_error

GROUP = 32  # codes per group minimum
TILE_SCORES = 2**19  # scores of a tile for each thread (it should stay in cache), at most four times as many in all
FEW_NUMBERS = 2**15  # of the codes that are held in float64 at once
SAMPLE = 15  # codes that the centre is the median of
FAR = 2.0**100  # a centre beyond would let x - centre overflow


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
        start: index of the first.
        vectors: (C, D) float32; C is a multiple of GROUP.
        bias: (C, 1) float32; infinite for what must not win.
        largest: () float32, the largest norm of a usable code.
    """

    start: int
    vectors: Tensor
    bias: Tensor
    largest: Tensor


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


def unit_vectors(vectors: Tensor) -> Tensor:
    """Vectors (..., D) over their norms; zero stays zero."""
    return torch.nn.functional.normalize(vectors, dim=-1, eps=torch.finfo(vectors.dtype).tiny)


def row_vectors(x: Tensor, centre: Tensor, metric: str, dtype: torch.dtype) -> Tensor:
    """Rows (..., D) as scores are formed from them: less the centre where the metric is invariant to it."""
    return x.to(dtype) - centre if metric == "euclidean" else x.to(dtype)


def code_vectors(codes: Tensor, centre: Tensor, metric: str, dtype: torch.dtype) -> Tensor:
    """Codes (..., D) as scores are formed from them."""
    if metric == "cosine":
        return unit_vectors(codes.to(widest_dtype(codes.device))).to(dtype)
    return codes.to(dtype) - centre


class CodeTiles:
    """The codes as a float32 product needs them, a tile at a time; all of them, from the start, in each iteration.

    Args:
        codes: (K, D).
        valid: (K,) bool or None.
        metric: "euclidean", "dot" or "cosine".
    """

    def __init__(self, codes: Tensor, valid: Tensor | None, metric: str) -> None:
        self.codes, self.valid, self.metric = codes, valid, metric
        self.centre = centre_of(codes, metric)
        self._kept: list[CodeTile] = []

    def __iter__(self) -> Iterator[CodeTile]:
        size = tile_shape(1, *self.codes.shape)[0]
        if size < len(self.codes):
            return self._form(size)
        if not self._kept:
            self._kept.extend(self._form(size))
        return iter(self._kept)

    def _form(self, size: int) -> Iterator[CodeTile]:
        """Tiles of `size` codes, each written over the one before.

        What must not win has bias inf: padding, codes that are not valid or not finite, and codes whose bias overflows.
        The latter count in the largest norm, so that the bound is infinite for each row that they could win.
        """
        half = 0.5 if self.metric == "euclidean" else 0.0
        buffer = self.codes.new_empty(size, self.codes.shape[1], dtype=torch.float32)
        for start in range(0, len(self.codes), size):
            tile = self.codes[start : start + size]
            number = len(tile)
            padded = number + -number % GROUP
            vectors = buffer[:padded]
            if self.metric == "cosine":
                vectors[:number] = code_vectors(tile, self.centre, self.metric, torch.float32)
            else:
                torch.sub(tile, self.centre, out=vectors[:number])
            if padded > number:
                vectors[number:] = torch.nan  # as a code that is not finite
            square = _squared_norms(vectors)
            if self.valid is not None:
                square[:number].masked_fill_(~self.valid[start : start + size], torch.nan)
            bias = (half * square).nan_to_num_(torch.inf, torch.inf).to(torch.float32)
            largest = square.nan_to_num_(0, 0).amax().sqrt().to(torch.float32)
            yield CodeTile(start, vectors.nan_to_num_(0, 0, 0), bias[:, None], largest)


def scan(x: Tensor, tiles: CodeTiles, k: int) -> BestScores:
    """The k best codes of each row (N, D), N >= 1, by float32 scores."""
    x = row_vectors(x, tiles.centre, tiles.metric, torch.float32)
    number, depth = x.shape
    tile_codes, tile_rows = tile_shape(number, *tiles.codes.shape)
    values = x.new_full((k + 1, number), torch.inf)
    indices = torch.zeros(k if k == 1 else k + 1, number, dtype=torch.int64, device=x.device)
    buffer = x.new_empty(tile_codes * tile_rows)
    merge = _merge_two if k == 1 else _merge_many
    largest = x.new_zeros(())
    for start, vectors, bias, norm in tiles:
        largest = torch.maximum(largest, norm)
        for row in range(0, number, tile_rows):
            part = slice(row, min(row + tile_rows, number))
            scores = buffer[: len(vectors) * (part.stop - row)].view(len(vectors), -1)
            torch.addmm(bias, vectors, x[part].T, alpha=-1, out=scores)
            merge(values[:, part], indices[:, part], scores, start)
    error = score_error(row_norms(x), largest, values[-2], tiles.metric, depth)
    return BestScores(indices[:k].T, values[1:] - values[:-1], values[-2], error)


def near_codes(x: Tensor, tiles: CodeTiles, limit: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """All codes of each row (R, D) whose float32 score is at most its limit (R,).

    Returns:
        code (P,) and row (P,) of the pairs, and crowded (R,) bool: rows left out, whose limit is not finite or that
        have more than about `most` such codes.
    """
    x = row_vectors(x, tiles.centre, tiles.metric, torch.float32)
    rows = tile_shape(len(x), *tiles.codes.shape)[1]
    bounded = limit < torch.inf
    limit, count = torch.where(bounded, limit, -torch.inf), torch.where(bounded, 0, most + 1)
    pairs = []
    for start, vectors, bias, _ in tiles:
        for first in range(0, len(x), rows):
            part = slice(first, first + rows)
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


def _squared_norms(vectors: Tensor) -> Tensor:
    """(C,) float64, a few at a time: a float64 copy of the whole tile would not stay in cache."""
    wide = widest_dtype(vectors.device)
    squares = []
    for part in vectors.split(max(1, FEW_NUMBERS // vectors.shape[1])):
        rows = part.to(wide)
        squares.append(torch.linalg.vecdot(rows, rows))
    return torch.cat(squares)


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


def tile_shape(num_rows: int, num_codes: int, depth: int) -> tuple[int, int]:
    """(codes, rows) of a tile, codes a multiple of GROUP; the fastest ones measured on two CPU cores."""
    tile_codes = 8192 if depth < 32 else 2048
    tile_codes = min(tile_codes, num_codes + -num_codes % GROUP)
    tile_rows = max(128, TILE_SCORES // tile_codes) * min(torch.get_num_threads(), 4)
    return tile_codes, min(num_rows, tile_rows)

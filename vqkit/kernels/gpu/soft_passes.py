"""Starts the passes of `soft_kernels.py` and puts their parts together.

Where one side has too few tiles to keep the device busy, the other is split into parts, each with results of its own,
which are added up in their order.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vqkit.kernels import gpu
from vqkit.kernels.gpu import soft_kernels as kernels
from vqkit.kernels.gpu.split_operands import TOP, SplitVectors
from vqkit.kernels.gpu.tiles import Tile, parts_of, tile_of


class Operands(NamedTuple):
    """Rows and codes as the kernels take them: N' and K' are N and K in whole tiles.

    Attributes:
        z: halves of the rows (N, D), zeros for those that are left out.
        codes: halves of the codes (K, D) less their mean, in one unit.
        mean: (D,) the mean code.
        factor: (N',) by which a product of the halves is multiplied to give a logit.
        bias: (K',) added to the logits; minus infinity takes a code out.
        shape: N, K, D.
        temperature: by which the logits are divided.
    """

    z: SplitVectors
    codes: SplitVectors
    mean: Tensor
    factor: Tensor
    bias: Tensor
    shape: tuple[int, int, int]
    temperature: float


class Terms(NamedTuple):
    """u_nk = linear_n x_nk + weight_n value_k + query_n . e_k, what of it there is; x_nk = l_nk - m_n, m_n = max l_n.

    Attributes:
        linear: (N',).
        weight: (N',), with value.
        value: (K',), with weight.
        query: halves of (N, D).
    """

    linear: Tensor | None = None
    weight: Tensor | None = None
    value: Tensor | None = None
    query: SplitVectors | None = None

    def flags(self) -> dict[str, bool]:
        """Which terms the kernels have to form."""
        return {
            "HAS_LINEAR": self.linear is not None,
            "HAS_VALUE": self.value is not None,
            "HAS_QUERY": self.query is not None,
        }


class RowSums(NamedTuple):
    """Of each row (N',): m = max_k l_nk, s = sum_k exp(x_nk), and sum_k exp(x_nk) u_nk."""

    largest: Tensor
    total: Tensor
    weighted: Tensor


def row_sums(problem: Operands, terms: Terms) -> RowSums:
    """The sums over all codes."""
    rows, codes = len(problem.factor), len(problem.bias)
    by_row = _by_row(problem, {"linear": terms.linear, "weight": terms.weight, "query": _query_factor(problem, terms)})
    tile = tile_of("row sums", problem.shape[2], problem.mean.device)
    programs, streamed = rows // tile.owned, codes // tile.streamed
    parts, per_part = parts_of(programs, streamed, problem.mean.device)
    sums = by_row.new_empty(3, parts, rows)
    gpu.launch(
        kernels.row_sums_kernel,
        (programs, parts),
        *(problem.z.halves, problem.codes.halves, (terms.query or problem.z).halves, by_row, _by_code(problem, terms)),
        *(sums, rows, codes, streamed, per_part),
        **terms.flags(),
        **_options(problem, tile),
    )
    largest = sums[0].amax(0)
    # A part without a code that may be used has m = minus infinity, and nothing in its sums.
    shift = (sums[0] - largest).clamp(min=kernels.FLOOR.value)
    weighted = sums[2] if terms.linear is None else sums[2] + terms.linear * shift * sums[1]
    return RowSums(largest, (shift.exp() * sums[1]).sum(0), (shift.exp() * weighted).sum(0))


def code_sums(problem: Operands, sums: RowSums, weight: Tensor) -> Tensor:
    """(K,) sum over rows of weight_n (N',) times the probability of the code."""
    rows, codes = len(problem.factor), len(problem.bias)
    by_row = _by_row(problem, {"largest": sums.largest, "weight": weight / sums.total})
    tile = tile_of("code sums", problem.shape[2], problem.mean.device)
    programs, streamed = codes // tile.owned, rows // tile.streamed
    parts, per_part = parts_of(programs, streamed, problem.mean.device)
    result = by_row.new_empty(parts, codes)
    gpu.launch(
        kernels.code_sums_kernel,
        (programs, parts),
        *(problem.z.halves, problem.codes.halves, by_row, result, rows, codes, streamed, per_part),
        **_options(problem, tile),
    )
    return result.sum(0)[: problem.shape[1]]


def gradients(problem: Operands, sums: RowSums, terms: Terms, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Float32 gradients (N, D) and (K, D) for G_nk = p_nk (u_nk - mean_n) to the logits, with mean (N',)."""
    lines = {"linear": terms.linear, "weight": terms.weight, "query": _query_factor(problem, terms), "constant": -mean}
    lines = {name: None if line is None else line / sums.total for name, line in lines.items()}
    by_row = _by_row(problem, {"largest": sums.largest, **lines})
    scale = 1 / (TOP.value * problem.temperature)
    dz = _gradient(problem, terms, by_row, owns_rows=True).mul_(problem.codes.unit * scale)
    by_row[2:] *= problem.z.unit  # each row has a unit of its own, which a sum over rows has to carry inside
    return dz, _gradient(problem, terms, by_row, owns_rows=False).mul_(scale)


def _gradient(problem: Operands, terms: Terms, by_row: Tensor, *, owns_rows: bool) -> Tensor:
    """(N, D) or (K, D): the sums of G times the halves of the other side."""
    number, size, depth = problem.shape
    rows, codes = len(problem.factor), len(problem.bias)
    tile = tile_of("gradient", depth, problem.mean.device)
    owned, streamed = (rows, codes) if owns_rows else (codes, rows)
    grid = owned // tile.owned, -(-depth // tile.out)
    parts, per_part = parts_of(grid[0] * grid[1], streamed // tile.streamed, problem.mean.device)
    result = by_row.new_empty(parts, number if owns_rows else size, depth)
    gpu.launch(
        kernels.gradient_kernel,
        (grid[0], parts, grid[1]),
        *(problem.z.halves, problem.codes.halves, (terms.query or problem.z).halves, by_row, _by_code(problem, terms)),
        *(result, result.shape[1], rows, codes, streamed // tile.streamed, per_part),
        D=depth,
        OWNS_ROWS=owns_rows,
        BC=tile.out,
        **terms.flags(),
        **_options(problem, tile),
    )
    return result[0] if parts == 1 else result.sum(0)


def has_tensor_memory(device: torch.device) -> bool:
    """Whether products have their sums in a memory of their own."""
    return gpu.generation(device) == 100


def _query_factor(problem: Operands, terms: Terms) -> Tensor | None:
    """(N',) by which a product of the halves is multiplied to give query . e."""
    return None if terms.query is None else terms.query.unit * (problem.codes.unit / (TOP.value * TOP.value))


def _by_row(problem: Operands, lines: dict[str, Tensor | None]) -> Tensor:
    """(6, N') table, a line for each of `kernels.ROW_LINES`."""
    lines = {"factor": problem.factor, **lines}
    empty = torch.zeros_like(problem.factor)
    given = [lines.get(name) for name in kernels.ROW_LINES]
    return torch.stack([empty if line is None else line for line in given])


def _by_code(problem: Operands, terms: Terms) -> Tensor:
    """(2, K') table: bias and value."""
    return torch.stack([problem.bias, problem.bias if terms.value is None else terms.value])


def _options(problem: Operands, tile: Tile) -> dict[str, Any]:
    return {
        "WIDTH": problem.z.halves.shape[2],
        "BO": tile.owned,
        "BS": tile.streamed,
        "BD": tile.depth,
        "TENSOR_MEMORY": has_tensor_memory(problem.mean.device),
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }

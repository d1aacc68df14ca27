"""Softmax over all codes, by blocks of rows, and gradients through it: the torch engine of soft assignment.

A block holds the logits of some rows with all K codes. A row's normalization is known before its probabilities are
used, so that no product is formed twice in a pass: one of N x K x D in a forward, three or four in a backward. Two
matrices of a block are alive at a time, in the processor's last cache while K is below some ten thousands.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from vqkit.kernels.bounds import product_is_lowered, result_dtype
from vqkit.kernels.statistics import check_range
from vqkit.precision import widest_dtype

BLOCK = 2**20  # numbers of a block on a processor, whose last cache should hold two
BLOCK_ON_A_DEVICE = 2**26
FEWEST_ROWS = 128  # of a block, however many codes there are: products with fewer rows are slow


class Centred(NamedTuple):
    """Rows and codes as the blocks need them.

    Attributes:
        x: (N, D) rows; zeros for those that are left out.
        codes: (K, D) less their mean, which shifts all logits of a row alike and takes their rounding errors away.
        temperature: by which the logits x . codes are divided.
    """

    x: Tensor
    codes: Tensor
    temperature: float


class Block(NamedTuple):
    """R rows with all codes.

    Attributes:
        part: which rows.
        logits: (R, K) less the row's largest: zero or negative.
        probabilities: (R, K) their softmax. Both matrices are the receiver's to overwrite: the next block reuses them.
    """

    part: slice
    logits: Tensor
    probabilities: Tensor

    def log_normalizer(self) -> Tensor:
        """(R,) log of the sum of exp(logits); to be called before the probabilities are overwritten."""
        return -self.probabilities.amax(1).log()  # the largest is one over that sum


def prepare(z: Tensor, codes: Tensor, temperature: float, kept: Tensor) -> Centred:
    """Rows z (N, D), codes (K, D), kept (N,) bool; float64 where an input is or float32 products are lowered."""
    dtype = result_dtype(z, codes)
    dtype = widest_dtype(z.device) if product_is_lowered(z.device) else dtype
    codes = codes.to(dtype)
    return Centred(torch.where(kept[:, None], z, 0).to(dtype), codes - codes.mean(0), temperature)


def softmax_blocks(problem: Centred) -> Iterator[Block]:
    """Blocks of rows, one after the other, until all rows, of which there may be none, had their turn."""
    x, codes, temperature = problem
    number, size = x.shape[0], codes.shape[0]
    step = max(1, min(number, block_rows(size, x.device)))
    logits, probabilities = x.new_empty(step, size), x.new_empty(step, size)
    for start in range(0, number, step):
        part = slice(start, min(start + step, number))
        block = logits[: part.stop - start]
        torch.addmm(block, x[part], codes.T, beta=0, alpha=1 / temperature, out=block)
        block.sub_(block.amax(1, keepdim=True))
        yield Block(part, block, torch.softmax(block, 1, out=probabilities[: part.stop - start]))


def block_rows(size: int, device: torch.device) -> int:
    """Rows of a block for a number of codes."""
    return max(FEWEST_ROWS, (BLOCK_ON_A_DEVICE if device.type == "cuda" else BLOCK) // size)


def backpropagate(problem: Centred, dlogits: Callable[[Block], Tensor]) -> tuple[Tensor, Tensor]:
    """Gradients to the rows (N, D) and to the codes (K, D), each contiguous.

    Args:
        problem: rows and codes.
        dlogits: the gradient (R, K) to the logits of a block, whose matrices it may overwrite. Each row adds up to 0,
            so that the mean code falls out.
    """
    x, codes, temperature = problem
    # Laid out by column: products into this layout are several times faster at small D, and no slower at large.
    dx, dcodes = x.new_zeros(x.T.shape).T, codes.new_zeros(codes.T.shape).T
    for block in softmax_blocks(problem):
        gradient = dlogits(block)
        torch.mm(gradient, codes, out=dx[block.part])
        dcodes.addmm_(gradient.T, x[block.part], alpha=1 / temperature)
    dx.div_(temperature)
    return dx.contiguous(), dcodes.contiguous()


def check_logits(z: Tensor, codes: Tensor, temperature: float) -> None:
    """Raises ValueError where `z` (N, D), `codes` (K, D) or the temperature cannot be meant."""
    for name, tensor, size in (("z", z, "N, D"), ("codes", codes, "K, D")):
        if tensor.ndim != 2 or not tensor.is_floating_point():
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)} and dtype {tensor.dtype}, expected ({size}) floating point; "
                "flatten to one row for each vector, and use .float() on integers."
            )
    if codes.shape[0] == 0 or z.shape[1] != codes.shape[1] or z.shape[1] == 0:
        raise ValueError(
            f"z has shape {tuple(z.shape)} and codes {tuple(codes.shape)}, expected (N, D) and (K, D) with K >= 1 and "
            "one D >= 1; move the channel to the last axis."
        )
    if z.device != codes.device:
        raise ValueError(f"codes is on {codes.device}, expected {z.device} as z; use codes.to(z.device).")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature is {temperature}, expected a positive number such as 0.01 or 1.0.")


def check_vector(name: str, vector: Tensor, length: int, device: torch.device) -> None:
    """Raises ValueError unless `vector` is (length,) on the device."""
    if vector.shape != (length,) or vector.device != device:
        raise ValueError(
            f"{name} has shape {tuple(vector.shape)} on {vector.device}, expected ({length},) on {device}; flatten it, "
            "one entry for each row or code."
        )


def check_indices(indices: Tensor, z: Tensor) -> None:
    """Raises ValueError unless `indices` holds an integer for each row of z (N, D)."""
    check_vector("indices", indices, z.shape[0], z.device)
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise ValueError(f"indices has dtype {indices.dtype}, expected integers; use indices.long().")


def chosen_codes(codes: Tensor, indices: Tensor) -> Tensor:
    """The codes (N, D) of indices (N,), bit for bit; 0 where an index is negative.

    Raises:
        ValueError: an index is K or more, on a processor; a GPU is not asked, as that would wait.
    """
    check_range(indices, codes.shape[0])
    return torch.where(indices[:, None] >= 0, codes[indices.clamp(min=0)], 0)

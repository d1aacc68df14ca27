"""Softmax over all codes, a panel of rows at a time, and gradients through it: the pass behind soft assignment.

A panel holds the logits of some rows with all K codes. A row's normalization is known before its probabilities are
used, so that no product is formed twice in a pass: one of N x K x D in a forward, three or four in a backward. Two
panels are alive at a time, in the processor's last cache while K is below some ten thousands.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from vqkit.kernels.products import product_is_lowered

PANEL = 2**20  # numbers of a panel on a processor, whose last cache should hold two
PANEL_ON_A_DEVICE = 2**26
FEWEST_ROWS = 128  # of a panel, however many codes there are: products with fewer rows are slow


class Problem(NamedTuple):
    """Rows and codes as the panels need them.

    Attributes:
        x: (N, D) rows; zeros for those that are left out.
        codes: (K, D) less `mean`, which shifts all logits of a row alike and takes their rounding errors away.
        mean: (D,) the mean code.
        temperature: by which the logits x . codes are divided.
    """

    x: Tensor
    codes: Tensor
    mean: Tensor
    temperature: float


class Panel(NamedTuple):
    """R rows with all codes.

    Attributes:
        part: which rows.
        largest: (R,) their largest logit.
        logits: (R, K) less the largest: zero or negative.
        probabilities: (R, K) their softmax. Both matrices are the receiver's to overwrite: the next panel reuses them.
    """

    part: slice
    largest: Tensor
    logits: Tensor
    probabilities: Tensor

    def log_normalizer(self) -> Tensor:
        """(R,) log of the sum of exp(logits); to be called before the probabilities are overwritten."""
        return -self.probabilities.amax(1).log()  # the largest is one over that sum


def prepare(z: Tensor, codes: Tensor, temperature: float, kept: Tensor) -> Problem:
    """Rows z (N, D), codes (K, D), kept (N,) bool; float64 where an input is, or where float32 products are lowered."""
    dtype = result_dtype(z, codes)
    dtype = torch.float64 if product_is_lowered(z.device) else dtype
    codes = codes.to(dtype)
    mean = codes.mean(0)
    return Problem(torch.where(kept[:, None], z, 0).to(dtype), codes - mean, mean, temperature)


def result_dtype(z: Tensor, codes: Tensor) -> torch.dtype:
    """Float64 if an input is, else float32."""
    return torch.promote_types(torch.promote_types(z.dtype, codes.dtype), torch.float32)


def softmax_panels(problem: Problem, bias: Tensor | None = None) -> Iterator[Panel]:
    """Panels of a few rows after the other, until all rows had their turn.

    Args:
        problem: rows, of which there may be none, and codes.
        bias: (K,) added to the logits, or None; minus infinity takes a code out.
    """
    x, codes, _, temperature = problem
    number, size = x.shape[0], codes.shape[0]
    budget = PANEL_ON_A_DEVICE if x.is_cuda else PANEL
    step = max(1, min(number, max(FEWEST_ROWS, budget // size)))
    logits, probabilities = x.new_empty(step, size), x.new_empty(step, size)
    for start in range(0, number, step):
        part = slice(start, min(start + step, number))
        panel = logits[: part.stop - start]
        torch.addmm(panel, x[part], codes.T, beta=0, alpha=1 / temperature, out=panel)
        if bias is not None:
            panel.add_(bias)
        largest = panel.amax(1)
        panel.sub_(largest[:, None])
        yield Panel(part, largest, panel, torch.softmax(panel, 1, out=probabilities[: part.stop - start]))


def backpropagate(
    problem: Problem, dlogits: Callable[[Panel], Tensor], bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Gradients to the rows (N, D) and to the codes (K, D), each contiguous.

    Args:
        problem: rows and codes.
        dlogits: the gradient (R, K) to the logits of a panel, whose matrices it may overwrite. The products are taken
            with codes less their mean; unless each row of it adds up to 0, the caller has to add what is missing.
        bias: see `softmax_panels`.
    """
    x, codes, _, temperature = problem
    # Laid out by column: products into this layout are several times faster at small D, and no slower at large.
    dx, dcodes = x.new_zeros(x.T.shape).T, codes.new_zeros(codes.T.shape).T
    for panel in softmax_panels(problem, bias):
        gradient = dlogits(panel)
        torch.mm(gradient, codes, out=dx[panel.part])
        dcodes.addmm_(gradient.T, x[panel.part], alpha=1 / temperature)
    dx.div_(temperature)
    return dx.contiguous(), dcodes.contiguous()


def check_rows_and_codes(z: Tensor, codes: Tensor, temperature: float) -> None:
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

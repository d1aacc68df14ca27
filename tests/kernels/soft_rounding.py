"""Bounds on the rounding of the fused soft assignment, from its stated form (docs/soft_assignment.md, "On a GPU").

All bounds are worst cases to first order, in float64, entry by entry. They hold for sums in any order, hence on any
processor. A product of two split vectors of W entries loses 3 2^-22 |a| |b| in the split and UNIT in each of 3 W
additions; a sum of K numbers loses K UNIT of the sum of their absolute values; exp, log and quotients lose a few UNIT.
The torch engine computes in the same form and loses less: its products are of float32, with W additions.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

UNIT = 2.0**-24  # of float32
SPLIT = 3 * 2.0**-22  # of a product of two vectors that are split into two float16 numbers each
TINY = 2.0**-126  # below it float32 loses digits, or everything
FEW = 8  # roundings of a chain of elementary operations, exp and log among them


def assert_within(found: Iterable[Tensor], expected: Iterable[Tensor], bounds: Iterable[Tensor]) -> None:
    """Every entry is within its bound of the expected one."""
    for value, other, bound in zip(found, expected, bounds, strict=True):
        assert value.shape == other.shape == bound.shape
        assert ((value - other).abs() <= bound).all(), f"off by {((value - other).abs() / bound).amax()} bounds"


def product(length: int) -> float:
    """Relative rounding of a product of split vectors of a length."""
    return SPLIT + 3 * length * UNIT


class Softmax(NamedTuple):
    """Probabilities of logits a.b / temperature and how far their rounding goes.

    Attributes:
        a: (N, W) rows.
        b: (K, W) codes less their mean.
        p: (N, K) probabilities.
        x: (N, K) logits less the largest of their row, at least -200.
        x_error: (N, K) error of x less its mean under p.
        p_error: (N, K) relative error of p.
        temperature: by which products are divided.
    """

    a: Tensor
    b: Tensor
    p: Tensor
    x: Tensor
    x_error: Tensor
    p_error: Tensor
    temperature: float


def softmax(z: Tensor, codes: Tensor, temperature: float, metric: str = "dot", valid: Tensor | None = None) -> Softmax:
    """Of rows (N, D) and codes (K, D), both float64."""
    a, b = z, codes - codes.mean(0)
    squares = b.square().sum(1)
    error = torch.zeros_like(z @ b.T)
    if metric == "euclidean":
        a = torch.cat([2 * (z - codes.mean(0)), -torch.ones_like(z[:, :1])], 1)
        error += (z.shape[1] + FEW) * UNIT * squares / temperature  # the sum of squares is one of float32
        b = torch.cat([b, (squares - squares.mean())[:, None]], 1)
    lengths = a.norm(dim=1)[:, None] * b.norm(dim=1) / temperature
    error += (product(a.shape[1]) + FEW * UNIT) * lengths
    logits = a @ b.T / temperature
    if valid is not None:
        logits = logits.masked_fill(~valid, -torch.inf)
    p, x = logits.softmax(1), (logits - logits.amax(1, keepdim=True)).clamp(min=-200)
    error += 2 * UNIT * x.abs()
    x_error = error + (p * error).sum(1, keepdim=True)
    p_error = x_error + (len(codes) + FEW) * UNIT + TINY / p.clamp(min=torch.finfo(p.dtype).tiny)
    return Softmax(a, b, p, x, x_error, p_error, temperature)


def gradients(of: Softmax, u: Tensor, u_error: Tensor, constant: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Errors (N, W), (K, W) of the gradients for G = p (u - R), with R = sum p u, or minus a constant (N,) known."""
    roundings = (len(of.b) + FEW) * UNIT
    if constant is None:
        mean = (of.p * u).sum(1, keepdim=True)
        mean_error = (of.p * ((u - mean).abs() * of.p_error + u_error + roundings * u.abs())).sum(1, keepdim=True)
    else:
        mean, mean_error = -constant[:, None], torch.zeros_like(constant)[:, None]
    error = of.p * ((u - mean).abs() * of.p_error + u_error + mean_error + FEW * UNIT * (u.abs() + mean.abs()))
    to_logits = (of.p * (u - mean)).abs()
    rows = (error + (product(len(of.b)) + FEW * UNIT) * to_logits) @ of.b.abs()
    codes = (error + (product(len(of.a)) + FEW * UNIT) * to_logits).T @ of.a.abs()
    return rows / of.temperature, codes / of.temperature


def index_backpropagation(indices: Tensor, temperature: float) -> Callable[..., list[Tensor]]:
    """Errors of value and gradients, as a function of z, codes and the gradient to the value."""

    def errors(z: Tensor, codes: Tensor, gradient: Tensor) -> list[Tensor]:
        of = softmax(z, codes, temperature)
        gradient = gradient * (indices >= 0)[:, None]
        lengths = gradient.norm(dim=1)[:, None] * of.b.norm(dim=1)
        rows, to_codes = gradients(of, gradient @ of.b.T, (product(z.shape[1]) + FEW * UNIT) * lengths)
        gathered = torch.zeros_like(codes).index_add_(0, indices.clamp(min=0), gradient.abs())
        exact = 2.0**-45 * codes.abs().sum(0).expand_as(z)  # the value is a copy: what is left is float64's
        return [exact, rows * (indices >= 0)[:, None], to_codes + (len(z) + FEW) * UNIT * gathered]

    return errors


def reinmax(indices: Tensor) -> Callable[..., list[Tensor]]:
    """Errors of value and gradients, as a function of z, codes and the gradient to the value.

    The logits get p (u - u_D) / 2 with u = g . e and D the code that was drawn, and that one the rest of a sum of 0.
    """

    def errors(z: Tensor, codes: Tensor, gradient: Tensor) -> list[Tensor]:
        of = softmax(z, codes, 1.0)
        gradient, drawn = gradient * (indices >= 0)[:, None], indices.clamp(min=0)
        u = gradient @ of.b.T
        u_error = (product(z.shape[1]) + FEW * UNIT) * gradient.norm(dim=1)[:, None] * of.b.norm(dim=1)
        of_drawn, error_of_drawn = (values.gather(1, drawn[:, None]) for values in (u, u_error))
        error = (u - of_drawn).abs() * of.p_error + u_error + error_of_drawn
        error = of.p * (error + FEW * UNIT * (u.abs() + of_drawn.abs()))
        to_logits = (of.p * (u - of_drawn)).abs()
        total = to_logits.sum(1, keepdim=True)
        error.scatter_add_(1, drawn[:, None], error.sum(1, keepdim=True) + (len(codes) + FEW) * UNIT * total)
        to_logits.scatter_add_(1, drawn[:, None], total)
        rows = (error + (product(len(codes)) + FEW * UNIT) * to_logits) @ of.b.abs() / 2
        to_codes = (error + (product(len(z)) + FEW * UNIT) * to_logits).T @ of.a.abs() / 2
        gathered = torch.zeros_like(codes).index_add_(0, drawn, gradient.abs())
        exact = 2.0**-45 * codes.abs().sum(0).expand_as(z)  # the value is a copy: what is left is float64's
        return [exact, rows * (indices >= 0)[:, None], to_codes + (len(z) + FEW) * UNIT * gathered]

    return errors


def assignment_entropy(temperature: float, metric: str, weights: Tensor) -> Callable[..., list[Tensor]]:
    """Errors of values and gradients, as a function of z, codes and the gradients to the values."""

    def errors(z: Tensor, codes: Tensor, to_entropies: Tensor, to_mean: Tensor) -> list[Tensor]:
        of = softmax(z, codes, temperature, metric)
        kept, share = (weights > 0).double(), (weights / weights.sum()).double()
        mean = (of.p * of.x).sum(1, keepdim=True)
        entropies = (of.p * (of.x - mean).abs() * of.x_error).sum(1) + (len(codes) + FEW) * UNIT * (1 - mean[:, 0])
        probabilities = share @ (of.p * (of.p_error + (len(z) + FEW) * UNIT))
        linear = (kept * to_entropies)[:, None]
        u = -linear * of.x + share[:, None] * to_mean
        u_error = linear.abs() * of.x_error + FEW * UNIT * ((linear * of.x).abs() + share[:, None] * to_mean.abs())
        rows, to_codes = gradients(of, u, u_error)
        if metric == "euclidean":  # through the map z -> 2 z, e -> (e, |e|^2)
            centered, square = codes - codes.mean(0), to_codes[:, -1:]
            exact = ((of.p * (u - (of.p * u).sum(1, keepdim=True))).T @ of.a)[:, -1:] / temperature
            rows = 2 * rows[:, :-1]
            to_codes = to_codes[:, :-1] + 2 * centered.abs() * (square + FEW * UNIT * exact.abs())
        return [kept * entropies, probabilities, rows, to_codes]

    return errors

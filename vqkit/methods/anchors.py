"""Which features of a batch unused codes move to, for CVQ (Zheng, Vedaldi 2023, arXiv:2307.15139)."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from vqkit import distributed, kernels
from vqkit.functional import unit
from vqkit.kernels import Metric
from vqkit.parts.selection import check_metric
from vqkit.precision import widened
from vqkit.saving.config import Configured

_PIECE = 2**20
"""Entries of a K x N matrix that are held at a time."""


class Anchor(Configured, ABC):
    """Which feature of the batch a code moves to. No module: it has nothing to train, and no mode."""

    def __init__(self) -> None:
        """Without arguments, unless a subclass has some."""

    @abstractmethod
    def __call__(self, codes: Tensor, z: Tensor, valid: Tensor, *, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """Choose a feature for each code, the same on every rank, and as one process with the joined batch would.

        Args:
            codes: (K, D).
            z: (N, D) the features of this rank.
            valid: (N,) bool.
            seed: of random choices.
            step: of random choices.

        Returns:
            anchors (K, D), 0 where there is none, and found (K,) bool, False there.
        """

    def __repr__(self) -> str:
        """The class and its arguments."""
        arguments = (f"{name}={value!r}" for name, value in self.recorded_arguments().items())
        return f"{type(self).__name__}({', '.join(arguments)})"


class ClosestAnchor(Anchor):
    """The feature that is most similar to the code; the first of equals, ranks in order.

    Several codes may take the same feature, as in the paper.

    Args:
        metric: of the similarity; "cosine" or "euclidean" in the paper.
    """

    def __init__(self, metric: Metric = "cosine") -> None:
        check_metric(metric)
        self.metric: Metric = metric

    def __call__(self, codes: Tensor, z: Tensor, valid: Tensor, *, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """The most similar feature of all ranks."""
        z, valid = at_least_one(z, valid)
        # NaN never wins: a mask would have to be read, which waits for the device. Where no vector counts, the codes
        # stand in, each of which finds itself: a search among nothing is the slowest of all.
        stand_in = codes[torch.arange(len(z), device=z.device) % len(codes)]
        others = torch.where(valid.any(), torch.nan, stand_in)
        nearest = kernels.nearest(codes, torch.where(valid.unsqueeze(-1), z, others), metric=self.metric).indices
        scores = _similarity(widened(codes), widened(z[nearest]), self.metric)
        return distributed.best_rows(torch.where(valid[nearest], scores, -torch.inf), z[nearest])


class RandomAnchor(Anchor):
    """A random feature of the batch, another one for each code.

    Differs: the released code keeps a pool of K features of several batches, which works only if whole batches fill it
    exactly. Here features are drawn from the batch of all ranks without replacement; where it has fewer than
    there are codes, a random choice of the codes gets one at this step.
    """

    def __call__(self, codes: Tensor, z: Tensor, valid: Tensor, *, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """Features drawn without replacement, given to the codes in random order."""
        size = len(codes)
        rows, drawn = distributed.shared_rows(z, valid, count=size, seed=seed, step=step)
        # Below zero: the positions of features, which the draw uses, are not.
        keys = distributed.counter_random(~torch.arange(size, device=codes.device), seed=seed, step=step)
        order = keys.argsort(stable=True)
        return rows[order], drawn[order]


class ProbabilisticAnchor(Anchor):
    """A feature drawn from the softmax, over all features, of the similarity to the code.

    With cosines this is nearly uniform, since they differ by 2 at most. It takes K x N random numbers a step, which
    is many times the cost of `ClosestAnchor`; they are held in pieces.

    Args:
        metric: the logits are cosines, -|z - e|^2 for "euclidean", or dot products; without a temperature, as in the
            paper.

    Differs: drawn as the largest of logits plus Gumbel noise, with counter-based numbers, over the features of all
    ranks and however many there are (`torch.multinomial` takes 2^24).
    """

    def __init__(self, metric: Metric = "cosine") -> None:
        check_metric(metric)
        self.metric: Metric = metric

    def __call__(self, codes: Tensor, z: Tensor, valid: Tensor, *, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """The feature with the largest noisy similarity of all ranks."""
        positions = distributed.joined_positions(len(z), z.device)
        z, valid = at_least_one(z, valid)
        positions = positions if len(positions) else positions.new_zeros(1)
        features, size = widened(z), len(codes)
        scores, chosen = features.new_empty(size), positions.new_empty(size)
        for numbers in pieces(size, len(z), z.device):
            logits = _all_similarities(widened(codes[numbers]), features, self.metric)
            uniform = distributed.counter_random(positions * size + numbers.unsqueeze(-1), seed=seed, step=step)
            noisy = logits - (-uniform.log()).log()
            scores[numbers], chosen[numbers] = torch.where(valid, noisy, -torch.inf).max(dim=1)
        return distributed.best_rows(scores, z[chosen])


def at_least_one(z: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """The vectors, or one that is not valid where there are none; those that are not valid are 0."""
    if not len(z):
        z, valid = z.new_zeros(1, z.shape[1]), valid.new_zeros(1)
    return torch.where(valid.unsqueeze(-1), z, 0), valid


def pieces(size: int, width: int, device: torch.device) -> Iterator[Tensor]:
    """Numbers of the codes, so many at a time that `width` entries for each fit."""
    yield from torch.arange(size, device=device).split(max(1, math.ceil(_PIECE / width)))


def _similarity(codes: Tensor, z: Tensor, metric: Metric) -> Tensor:
    """(K, D) and (K, D) -> (K,)."""
    if metric == "euclidean":
        return -(codes - z).square().sum(-1)
    if metric == "cosine":
        codes, z = unit(codes), unit(z)
    return torch.linalg.vecdot(codes, z)


def _all_similarities(codes: Tensor, z: Tensor, metric: Metric) -> Tensor:
    """(K, D) and (N, D) -> (K, N)."""
    if metric == "cosine":
        codes, z = unit(codes), unit(z)
    products = codes @ z.mT
    if metric == "euclidean":
        return 2 * products - codes.square().sum(1, keepdim=True) - z.square().sum(1)
    return products

"""Balanced assignment in training: the codes of a batch are chosen together, so that each gets its share.

A code that few vectors are nearest to becomes cheaper until vectors choose it: every code goes on being trained, and
items that would share one semantic ID are told apart. Outside of training the choice is the nearest code, so that the
index of a vector never depends on what else is in its batch.

Source: Zhang et al. 2024, "Preventing Local Pitfalls in Vector Quantization via Optimal Transport" (OptVQ,
arXiv:2412.15195); in recommenders Zheng et al. 2023 (LC-Rec, arXiv:2311.09049), on the last level.
Differs: OptVQ's released code takes the same path in evaluation.
"""

import math

import torch
from torch import Tensor

from vqkit.kernels import balancing_prices, nearest
from vqkit.parts.selection import Search


class SinkhornSearch(Search):
    """In training the code of smallest squared distance plus a price that evens out the batch; else the nearest one.

    The prices are those of `vqkit.kernels.balancing_prices`, over the batch of all ranks; of residual stages each has
    its own. The search among N vectors and K codes costs `iterations` products of N x K x D more, and holds nothing of
    size N x K. A batch should have several vectors for each code: with fewer, even shares say little.

        >>> stage = lambda: Quantizer("vq", dim=32, codebook_size=256, search=SinkhornSearch())
        >>> ResidualQuantizer(stage, 3)

    Args:
        temperature: of the plan, in standard deviations of the squared distances. Lower ones follow the distances less
            softly, and need more iterations.
        iterations: of Sinkhorn's algorithm, at least 1.

    Source: OptVQ (arXiv:2412.15195): temperature 0.1 of standardised distances, 5 iterations; LC-Rec has 0.003 of
    distances scaled to [-1, 1] and 50 iterations.
    Differs: see `vqkit.kernels.balancing_prices`. Even shares are those of a soft plan; of its largest entries they are
    near ones.

    Raises:
        ValueError: an argument is out of its range.
    """

    sees_batch = True

    def __init__(self, *, temperature: float = 0.1, iterations: int = 5) -> None:
        super().__init__("euclidean")
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature={temperature}: expected a positive number, such as 0.1")
        if iterations < 1:
            raise ValueError(f"iterations={iterations}: expected at least 1, such as 5")
        self.temperature = temperature
        self.iterations = iterations

    def choose_together(self, z: Tensor, codes: Tensor, valid: Tensor) -> Tensor:
        """Which of `codes` (K, D) each row of `z` (N, D) takes in training, (N,) int64; see `Search`."""
        z, codes = z.detach(), codes.detach()
        prices = balancing_prices(z, codes, valid=valid, temperature=self.temperature, iterations=self.iterations)
        # |x - e|^2 + p is least where x . e - (|e|^2 + p) / 2 is largest: a product with one more dimension.
        middle = codes.mean(0)
        rows, points = z - middle, codes - middle
        bias = -(points.square().sum(1) + prices) / 2
        rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
        return nearest(rows, torch.cat([points, bias[:, None]], dim=1), metric="dot").indices

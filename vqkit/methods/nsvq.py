"""NSVQ: the quantization error replaced by noise of the same length, which lets one gradient train encoder and codes.

Source: Vali, Bäckström 2022, "NSVQ: Noise Substitution in Vector Quantization for Machine Learning"
(https://ieeexplore.ieee.org/document/9696322).
"""

import torch
from torch import Tensor

from vqkit.functional import unit
from vqkit.parts import Parts
from vqkit.parts.codebooks import NormalCodebook
from vqkit.parts.estimators import Estimator, straight_through
from vqkit.parts.maintenance import RandomRestart
from vqkit.parts.selection import Search, Selection


class NSVQ(Estimator):
    """In training y = z + |e - z| n with n of random direction and length 1.

    With u = (e - z) / |e - z| a gradient g of y becomes g - (g . n) u for the vector and (g . n) u for its code: both
    follow from the length of the error, and add up to g. Without noise (eval mode with gradients on) it is
    straight-through; where a vector is its code, the whole gradient goes to the vector.

    In a residual chain, `ResidualQuantizer(stage, n, estimator=NSVQ())` substitutes the error of the sum: with noise
    in place of each stage's error, the later stages would learn noise.

    Source: Vali, Bäckström 2022 (https://ieeexplore.ieee.org/document/9696322).
    Differs: no 1e-12 is added to lengths, whose gradient at zero is defined as zero.
    """

    trains_codebook = True
    stays_close_to_code = False
    uses_noise = True

    def forward(self, selection: Selection) -> Tensor:
        """(N, D): as far from z as the code, in a random direction; `selection.selected` without noise."""
        z, selected = selection.z, selection.selected
        if selection.noise is None:
            return straight_through(selected, z)
        direction = unit(selection.noise.normal(z.shape[1])).to(z.dtype)
        return z + torch.linalg.vector_norm(selected - z, dim=-1, keepdim=True) * direction


def nsvq() -> Parts:
    """The estimator alone, with no loss on codes or vectors, codes that start as N(0, 1), and dead codes restarted.

    Differs: published, the user calls for the replacement, and a code that less than 1 % of the forwards since the
    last call chose becomes a copy of a used code, a little beside it; the nearest to that is
    `maintenance=[LBGSplitting()]`. Here codes below a tenth of the mean usage become vectors of the batch, which
    reaches data that no code is near; usage counts vectors, not forwards, and is summed over ranks.
    """
    return Parts(
        codebook=NormalCodebook,
        search=Search("euclidean"),
        estimator=NSVQ(),
        maintenance=(RandomRestart(),),
    )

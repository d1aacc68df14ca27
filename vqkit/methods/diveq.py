"""DiVeQ: the quantization error as its length times a direction that is held constant, and is nearly that of the code.

Source: Vali, Bäckström, Solin 2025, "DiVeQ: Differentiable Vector Quantization Using the Reparameterization Trick"
(arXiv:2509.26469). Its space-filling variant (SF-DiVeQ) is not here: that quantizes to points between two codes, which
no integer index tells, so that there is nothing to decode.
"""

import math

import torch
from torch import Tensor, nn

from vqkit.functional import unit
from vqkit.parts import Parts
from vqkit.parts.codebooks import Codebook
from vqkit.parts.estimators import Estimator, straight_through
from vqkit.parts.maintenance import RandomRestart
from vqkit.parts.selection import Search, Selection


class PositiveUniformCodebook(Codebook):
    """K trainable codes that start uniform in [0, 1/K), as in the released code of DiVeQ; see `Codebook`.

    Source: the released code of Vali, Bäckström, Solin 2025 (arXiv:2509.26469).
    """

    def build_vectors(self, generator: torch.Generator) -> None:
        """Uniform codes; see `Codebook`."""
        unit_interval = torch.rand(self.codebook_size, self.dim, generator=generator, dtype=torch.float32)
        self.vectors = nn.Parameter(unit_interval / self.codebook_size)


class DiVeQ(Estimator):
    """In training y = z + |e - z| sg(d), d = unit(noise + e - z), noise normal in each dimension.

    With u = (e - z) / |e - z| a gradient g of y becomes g - (g . d) u for the vector and (g . d) u for its code. The
    value is as far from z as the code, and less than about |noise| from that; without noise it is the code.

    Args:
        variance: of the noise in each dimension, in squared units of the latents, at least 0. At 0 it is the paper's
            DiVeQ-detach: the value is bit for bit the code, and d is u. So it is without noise at any variance (eval
            mode with gradients on).

    Source: Vali, Bäckström, Solin 2025 (arXiv:2509.26469), variance 1e-3.
    Differs: the released code hands its 1e-3 to a function that takes a standard deviation, so its noise is 32 times
    as short as the paper's; for that, `DiVeQ(1e-6)`.

    Raises:
        ValueError: the variance is negative or not a number.
    """

    trains_codebook = True

    def __init__(self, variance: float = 1e-3) -> None:
        super().__init__()
        if not 0 <= variance < math.inf:
            raise ValueError(f"variance={variance}: expected a number of at least 0, 1e-3 in the paper")
        self.variance = variance

    @property
    def uses_noise(self) -> bool:  # type: ignore[override]
        """With variance."""
        return self.variance > 0

    def forward(self, selection: Selection) -> Tensor:
        """(N, D): nearly `selection.selected`, and equal to it without noise."""
        z, selected = selection.z, selection.selected
        offset = selected - z
        length = torch.linalg.vector_norm(offset, dim=-1, keepdim=True)
        if selection.noise is None or not self.uses_noise:
            return straight_through(selected, z + length * unit(offset.detach()))
        noise = self.variance**0.5 * selection.noise.normal(z.shape[1]).to(z.dtype)
        return z + length * unit(noise + offset.detach())


def diveq() -> Parts:
    """The estimator alone, with no loss on codes or vectors, codes that start in [0, 1/K), and dead codes restarted.

    Its residual form is one error over the sum: `ResidualQuantizer(stage, n, estimator=DiVeQ())`.

    Differs: published, every 100 forwards, those of evaluation too, a code that less than 1 % of them chose becomes a
    copy of a used code; the nearest to that is `maintenance=[LBGSplitting()]`. Here, in training only, codes below a
    tenth of the mean usage become vectors of the batch, which reaches data that no code is near; usage counts vectors,
    not forwards, and is summed over ranks.
    """
    return Parts(
        codebook=PositiveUniformCodebook,
        search=Search("euclidean"),
        estimator=DiVeQ(1e-3),
        maintenance=(RandomRestart(),),
    )

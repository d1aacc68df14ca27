"""The bottleneck of a continuous autoencoder, in the place of a quantizer."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from vqkit.functional import connected_zero
from vqkit.parts.selection import Noise
from vqkit.quantizers.base import BaseQuantizer
from vqkit.quantizers.output import Quantized
from vqkit.runtime import ForwardNumbers, uncompiled

LOG_VARIANCES = -30.0, 20.0
"""Least and greatest log-variance, as published: beyond them there is no gradient."""


@dataclass(frozen=True, eq=False)
class Posterior(Quantized):
    """What `GaussianBottleneck` made.

    Attributes:
        divergence: (B, *S) nats of each vector; None without quantization.
    """

    divergence: Tensor | None = None


class GaussianBottleneck(BaseQuantizer):
    """A diagonal Gaussian in the place of a quantizer: with it, encoder and decoder are a variational autoencoder.

    The input holds D means and behind them D log-variances, as an encoder with `moments` gives them
    (`vqkit.backbones.gaussian.GaussianEncoder`). In training the decoder gets a sample mean + sigma * noise, otherwise
    the mean. `without_quantization` passes the mean on, and leaves the divergence out.

    There is no codebook and nothing is chosen: `codebook_sizes` is empty, `indices` are (B, *S, 0), and whatever needs
    indices is refused (`check_has_codes`). A quantizer of the same `dim` in its place makes the model discrete; it sees
    the means.

    Args:
        dim: D; the input has 2 D channels, the output D.
        kl_weight: of the loss `kl`, the divergence KL(N(mean, sigma^2) || N(0, 1)) in nats, summed over the D
            dimensions of a vector, mean over vectors; at least 0.
        channel_dim: see `BaseQuantizer`.
        seed: of the noise, a function of it, of the number of the training forward and of the vector's place in the
            batch of all ranks.

    State:
        extra state: how many training forwards have drawn, as an int64 tensor.

    Source: Kingma, Welling 2013 ([arXiv:1312.6114](https://arxiv.org/abs/1312.6114)), eq. 10; the weight 1e-6 and the
    range of the log-variance as in latent diffusion, Rombach et al. 2021
    ([arXiv:2112.10752](https://arxiv.org/abs/2112.10752)).
    Differs: the release sums the divergence over all positions, and errors over all pixels. Where objectives are means,
    as here, its balance is `kl_weight=1e-6 / (3 f^2)` with one vector for f x f pixels of 3 colours.

    Raises:
        ValueError: `dim` is not positive, or `kl_weight` is negative or not a number.
    """

    codebook_size = 0
    num_codebooks = 0
    level_axis = True
    moments = 2

    def __init__(self, dim: int, *, kl_weight: float = 1e-6, channel_dim: int = -1, seed: int = 0) -> None:
        super().__init__(dim, channel_dim=channel_dim)
        if not 0 <= kl_weight < float("inf"):
            raise ValueError(f"kl_weight={kl_weight}: expected a number of at least 0")
        self.kl_weight = kl_weight
        self.seed = seed
        self.draws = 0
        self._numbers = ForwardNumbers()

    def quantize(self, latents: Tensor, valid: Tensor) -> Posterior:
        """Sample in training, and take the mean otherwise; see `BaseQuantizer`."""
        vectors, log_variance = latents.chunk(2, dim=-1)
        divergence = None
        if not self.passes_through:
            log_variance = log_variance.clamp(*LOG_VARIANCES)
            divergence = (vectors.square() + log_variance.expm1() - log_variance).sum(-1) / 2
            if self.stochastic:
                vectors = vectors + (log_variance / 2).exp() * self._noise(latents)
        vectors = torch.where(valid.unsqueeze(-1), vectors, 0)
        indices = torch.empty(*valid.shape, 0, dtype=torch.int64, device=valid.device)
        return Posterior(vectors, indices, valid, divergence=divergence)

    def penalize(self, quantized: Quantized) -> tuple[Tensor, dict[str, Tensor]]:
        """The divergence; see `BaseQuantizer`."""
        if not isinstance(quantized, Posterior) or quantized.divergence is None:
            return connected_zero(quantized.vectors), {}
        weight = quantized.valid.to(self.dtype)
        kl = (quantized.divergence * weight).sum() / weight.sum().clamp(min=1)
        return self.kl_weight * kl, {"kl": kl}

    def initialize(self, latents: Iterable[Tensor], *, samples: int | None = None, seed: int = 0) -> None:
        """Nothing is fitted, and `latents` are not read."""

    def check_has_codes(self, call: str) -> NoReturn:
        """Refuse it; see `BaseQuantizer`."""
        raise ValueError(
            f"{call} needs codes, and {type(self).__name__} has none: its latents are continuous; train a quantizer of "
            f"dim={self.dim} in its place, with the encoder and decoder that it was trained with"
        )

    def encode(self, x: Tensor, mask: Tensor | None = None) -> NoReturn:
        """Refused: there are no indices."""
        self.check_has_codes("encode")

    def decode(self, indices: Tensor) -> NoReturn:
        """Refused: there are no indices."""
        self.check_has_codes("decode")

    def lookup(self, indices: Tensor) -> NoReturn:
        """Refused: there are no indices."""
        self.check_has_codes("lookup")

    @uncompiled  # a Python number, on which a compiler would specialise anew at every step
    def _noise(self, latents: Tensor) -> Tensor:
        """(B, *S, dim) standard normal."""
        if self.learning:
            self.draws += 1
        shape = *latents.shape[:-1], self.dim
        step = self._numbers.find(latents, self.draws)
        noise = Noise.of_step(self.seed, step, latents[..., 0].numel(), latents.device)
        return noise.normal(self.dim).to(latents.dtype).reshape(shape)

    def get_extra_state(self) -> Tensor:
        """How many forwards have drawn."""
        return torch.tensor([self.draws], dtype=torch.int64)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the count of draws."""
        self.draws = int(state[0])

    def extra_repr(self) -> str:
        """Weight and layout."""
        return f"dim={self.dim}, kl_weight={self.kl_weight}, channel_dim={self.channel_dim}"

"""CODA: attention to a codebook makes the latents of a trained continuous VAE discrete.

Source: Liu et al. 2025, "CODA: Repurposing Continuous VAEs for Discrete Tokenization" (arXiv:2503.17760), and its
released code.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqkit import distributed
from vqkit.functional import matching_map
from vqkit.parts import Parts
from vqkit.parts.codebooks import Codebook, FrozenCodebook, match_linear
from vqkit.parts.estimators import IndexBackpropagation
from vqkit.parts.losses import CodebookLoss, Commitment, DoubleQuantization, Entropy
from vqkit.parts.selection import Search
from vqkit.runtime import autocast_disabled

NORM_EPS = 1e-5


class AttentionCodebook(Codebook):
    """K codes that are the values of an attention: a vector takes the value whose key fits its query best.

    With a trained base b_k, queries q = norm(W_q z + c_q), keys k_k = norm(W_k b_k + c_k) and values e_k = W_v b_k +
    c_v, the logits are q . k_k / sqrt(A). What is compared has a space of its own, so that codes may go where the
    decoder wants them. Every code moves at every step, since all share the maps.

    State:
        base: (K, D) float32 parameter.
        to_query, to_key: linear (D, A) with bias, each followed by an RMS norm with a gain.
        to_value: linear (D, D) with bias.
        And usage as in `Codebook`.

    Args:
        codebook_size: K.
        dim: D.
        attention_dim: A, of queries and keys, at least 1.
        usage_decay: see `Codebook`.
        seed: of the base and of the maps.

    Source: CODA (arXiv:2503.17760); base N(0, 1), maps as in torch.nn.Linear, A = 32 and the norms of both published
    configurations.
    Differs: `initialize`, of which the paper has none, gives the values the mean and covariance of the data, and every
    value the query that is its own key, so that the first choices are near ones.

    Raises:
        ValueError: an argument is out of its range.
    """

    rows = "derived"
    attention = True
    per_code = ("base",)

    base: Tensor

    def __init__(
        self, codebook_size: int, dim: int, *, attention_dim: int = 32, usage_decay: float = 0.99, seed: int = 0
    ) -> None:
        if attention_dim < 1:
            raise ValueError(f"attention_dim={attention_dim}: expected the size of queries and keys, at least 1")
        self.attention_dim = attention_dim
        super().__init__(codebook_size, dim, usage_decay=usage_decay, seed=seed)

    def build_vectors(self, generator: torch.Generator) -> None:
        """The base and the maps; see `Codebook`."""
        self.base = nn.Parameter(torch.randn(self.codebook_size, self.dim, generator=generator, dtype=torch.float32))
        self.to_query, self.to_key = (nn.Linear(self.dim, self.attention_dim, dtype=torch.float32) for _ in range(2))
        self.to_value = nn.Linear(self.dim, self.dim, dtype=torch.float32)
        bound = 1 / math.sqrt(self.dim)
        for layer in (self.to_query, self.to_key, self.to_value):
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
        self.query_norm, self.key_norm = (
            nn.RMSNorm(self.attention_dim, eps=NORM_EPS, dtype=torch.float32) for _ in range(2)
        )

    def forward(self) -> Tensor:
        """The values (K, D)."""
        return self.to_value(self.base)

    def search_vectors(self, vectors: Tensor) -> Tensor:
        """The keys (K, A)."""
        return self.key_norm(self.to_key(self.base))

    def queries(self, z: Tensor) -> Tensor:
        """The queries (N, A), divided by sqrt(A)."""
        return self.query_norm(self.to_query(z)) / math.sqrt(self.attention_dim)

    @torch.no_grad()
    def initialize(self, samples: Tensor, *, vectors_per_step: int, seed: int) -> None:
        """Give the values the mean and covariance of `samples` (M, D), and each the query that is its key; see
        `Codebook`.
        """
        match_linear(self.to_value, self.base, samples)
        weight, bias = (part.to(self.base.dtype) for part in matching_map(samples, self.base))  # values to their base
        self.to_query.weight.copy_(distributed.from_first_rank(self.to_key.weight @ weight))
        self.to_query.bias.copy_(distributed.from_first_rank(self.to_key.weight @ bias + self.to_key.bias))
        self.assume_uniform_usage(vectors_per_step)

    @torch.no_grad()
    def table(self) -> "AttentionTable":
        """Keys and values, bit for bit, and the map to queries as it is; see `Codebook`."""
        table = AttentionTable(self.codebook_size, self.dim, attention_dim=self.attention_dim).to(self.usage)
        with autocast_disabled(self.usage.device):
            vectors = self()
            keys = self.search_vectors(vectors)
        state = {"vectors": vectors, "keys": keys, "usage": self.usage, "query_gain": self.query_norm.weight}
        state |= {"query_weight": self.to_query.weight, "query_bias": self.to_query.bias}
        table.load_state_dict(state, strict=False)  # without what is pending
        table.steps, table.refreshed_at = self.steps, self.refreshed_at
        return table


class AttentionTable(FrozenCodebook):
    """Stored keys and values, and the map to queries: what `vqkit.bake` makes of an `AttentionCodebook`.

    State:
        keys: (K, A) float32 buffer, searched.
        query_weight, query_bias, query_gain: (A, D), (A,) and (A,) float32 buffers, the linear map and its norm.
        And that of `FrozenCodebook`.
    """

    attention = True
    per_code = ("vectors", "keys")

    keys: Tensor
    query_weight: Tensor
    query_bias: Tensor
    query_gain: Tensor

    def __init__(
        self, codebook_size: int, dim: int, *, attention_dim: int, usage_decay: float = 0.99, seed: int = 0
    ) -> None:
        self.attention_dim = attention_dim
        super().__init__(codebook_size, dim, usage_decay=usage_decay, seed=seed)

    def build_vectors(self, generator: torch.Generator) -> None:
        """Zeros, as buffers; see `Codebook`."""
        super().build_vectors(generator)
        size, width = self.vectors.shape, self.attention_dim
        self.register_buffer("keys", self.vectors.new_zeros(size[0], width))
        self.register_buffer("query_weight", self.vectors.new_zeros(width, size[1]))
        self.register_buffer("query_bias", self.vectors.new_zeros(width))
        self.register_buffer("query_gain", self.vectors.new_zeros(width))

    def search_vectors(self, vectors: Tensor) -> Tensor:
        """The keys (K, A)."""
        return self.keys

    def queries(self, z: Tensor) -> Tensor:
        """The queries (N, A), divided by sqrt(A), in the arithmetic of `AttentionCodebook`."""
        mapped = F.linear(z, self.query_weight, self.query_bias)
        normed = F.rms_norm(mapped, (self.attention_dim,), self.query_gain, NORM_EPS)
        return normed / math.sqrt(self.attention_dim)

    def initialize(self, samples: Tensor, *, vectors_per_step: int, seed: int) -> None:
        """Refused: other values than those of its keys would not be what their queries mean."""
        raise ValueError(
            f"{type(self).__name__} stores what training made of keys, values and queries together: initialize a "
            "quantizer with an AttentionCodebook, and bake it afterwards"
        )

    def table(self) -> "AttentionTable":
        """Itself: it is one already."""
        return self

    def factory(self) -> Callable[[int, int], Codebook]:
        """With the size of its keys; see `Codebook`."""
        return partial(type(self), attention_dim=self.attention_dim)


def coda() -> Parts:
    """Choice by attention; mse(quantized, z) + mse(z, sg e) + 0.05 mse(sg z, e) + 0.05 (H(p) - H(mean p)).

    One scale of the published quantizer, which is residual over many (`MultiScaleQuantizer` of a shared stage).

    Differs: no epsilon in the logarithm of mean p, which matters for many codes; see `Entropy`.
    """
    return Parts(
        codebook=AttentionCodebook,
        search=Search("dot"),
        estimator=IndexBackpropagation(),
        losses=(DoubleQuantization(1.0), Commitment(1.0), CodebookLoss(0.05), Entropy(0.05)),
    )

"""Maps around any quantizer, composites above all: one map into the channels of all its books, and one out of them."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqkit.functional import connected_zero
from vqkit.quantizers.base import BaseQuantizer
from vqkit.quantizers.composite import CompositeQuantizer, build_one
from vqkit.quantizers.output import Quantized
from vqkit.quantizers.reduction import SumOverMembers
from vqkit.runtime import autocast_disabled
from vqkit.saving.config import Configured


class Projection(Configured, nn.Module, ABC):
    """A trainable map of vectors, which may look at the other vectors of a sample.

    Args:
        in_dim: channels that it takes.
        out_dim: channels that it gives.
    """

    pointwise: ClassVar[bool] = False
    """Whether it maps each vector by itself."""

    @abstractmethod
    def forward(self, vectors: Tensor, valid: Tensor) -> Tensor:
        """Map vectors.

        Args:
            vectors: (B, *S, in_dim); anything finite where not valid.
            valid: (B, *S) bool. What is not valid has no influence on others.

        Returns:
            (B, *S, out_dim); anything where not valid.
        """


class LinearProjection(Projection):
    """A linear map of each vector."""

    pointwise = True

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_dim, out_dim, dtype=torch.float32)

    def forward(self, vectors: Tensor, valid: Tensor) -> Tensor:
        """W x + b."""
        return self.linear(vectors)


class AttentionProjection(Projection):
    """Factorized attention: x = W LN(x) + A(LN(x)), then x + MLP(LN(x)), with A among all vectors of a sample.

    A is attention with as many heads of the smaller size as fit the larger one. On the way to fewer channels the heads
    are averaged, on the way to more they stand side by side; a linear map follows. Keys have no bias. The MLP is gated,
    twice as wide as what it gives: W_3 (GELU(W_1 x) * W_2 x), with GELU by tanh and one more LN before it.

    Source: UniTok, Ma et al. 2025 (arXiv:2502.20321), sec. 3.2, as in its released code.

    Raises:
        ValueError: neither size is a multiple of the other.
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        width, head = max(in_dim, out_dim), min(in_dim, out_dim)
        if head < 1 or width % head:
            raise ValueError(
                f"in_dim={in_dim}, out_dim={out_dim}: expected a multiple of the other in one of them, since their "
                "quotient is the number of heads"
            )
        self.in_dim, self.out_dim, self.num_heads = in_dim, out_dim, width // head
        self.shortcut_norm = nn.LayerNorm(in_dim)
        self.shortcut = nn.Linear(in_dim, out_dim)
        self.attention_norm = nn.LayerNorm(in_dim)
        self.query_key_value = nn.Linear(in_dim, 3 * width, bias=False)
        self.query_bias = nn.Parameter(torch.zeros(width))
        self.value_bias = nn.Parameter(torch.zeros(width))
        self.attention_out = nn.Linear(out_dim, out_dim)
        self.gate_norm = nn.Sequential(nn.LayerNorm(out_dim), nn.LayerNorm(out_dim, eps=1e-6))
        self.gate, self.gated = (nn.Linear(out_dim, 2 * out_dim) for _ in range(2))
        self.gate_out = nn.Linear(2 * out_dim, out_dim)
        self.float()  # whatever the default is, as the quantizer around it

    def forward(self, vectors: Tensor, valid: Tensor) -> Tensor:
        """(B, *S, in_dim) -> (B, *S, out_dim)."""
        x = vectors.reshape(vectors.shape[0], math.prod(valid.shape[1:]), self.in_dim)
        x = self.shortcut(self.shortcut_norm(x)) + self.attend(self.attention_norm(x), valid)
        normed = self.gate_norm(x)
        x = x + self.gate_out(F.gelu(self.gate(normed), approximate="tanh") * self.gated(normed))
        return x.reshape(*valid.shape, self.out_dim)

    def attend(self, x: Tensor, valid: Tensor) -> Tensor:
        """(B, N, in_dim) -> (B, N, out_dim), each vector looking at all that are valid, (B, *S)."""
        seen = valid.reshape(x.shape[0], 1, 1, x.shape[1])
        seen = seen | ~seen.any(-1, keepdim=True)  # a softmax over nothing would be NaN
        heads = self.query_key_value(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = heads.unbind(0)
        biases = (bias.unflatten(0, (self.num_heads, 1, -1)) for bias in (self.query_bias, self.value_bias))
        query, value = (part + bias for part, bias in zip((query, value), biases, strict=True))
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        joined = found.mean(1) if self.in_dim > self.out_dim else found.transpose(1, 2).flatten(2)
        return self.attention_out(joined)


class ProjectedQuantizer(CompositeQuantizer):
    """A quantizer between two maps: one from `dim` channels into those of the quantizer, one back.

    `codebook_dim` gives each book maps of its own; these are shared by all, so that what a book says may come from
    everywhere. `AttentionProjection` also lets the vectors of a sample look at each other, in both directions: then
    indices depend on the whole sample, and a part of them decodes to something else than the part of the whole.

        >>> book = functools.partial(Quantizer, "vq", dim=8, codebook_size=4096, normalize=True)
        >>> books = functools.partial(GroupedQuantizer, book, 8)
        >>> ProjectedQuantizer(books, 1024, projection=AttentionProjection)  # UniTok

    Args:
        quantizer: builds the quantizer in between: any, composites too.
        dim: of the whole.
        projection: from (in_dim, out_dim) to a map; called for the way in and for the way out.
        channel_dim: see `BaseQuantizer`; the quantizer itself has -1.

    Source: UniTok, Ma et al. 2025 (arXiv:2502.20321).

    Raises:
        ValueError: an argument is out of its range, or `quantizer` lists several.
    """

    member_name = "quantizer"
    has_projection = True

    def __init__(
        self,
        quantizer: Sequence[Callable[[], BaseQuantizer]] | Callable[[], BaseQuantizer],
        dim: int,
        *,
        projection: Callable[[int, int], Projection] = LinearProjection,
        channel_dim: int = -1,
    ) -> None:
        inner = build_one(quantizer, owner="ProjectedQuantizer")
        super().__init__([inner], dim, channel_dim=channel_dim, reduction=SumOverMembers())
        self.quantizer = inner
        self.level_axis = inner.level_axis
        self.project_in, self.project_out = projection(dim, inner.dim), projection(inner.dim, dim)

    @property
    def members(self) -> Iterable[BaseQuantizer]:
        """The quantizer in between."""
        return [self.quantizer]

    def quantize(self, latents: Tensor, valid: Tensor) -> Quantized:
        """Map in, quantize, map out; see `BaseQuantizer`."""
        made = self.quantizer.quantize(self.project_in(latents, valid), valid)
        chosen = valid if self.passes_through else self.has_index(made.indices)
        return Quantized(self._leave(made.vectors, chosen), made.indices, valid, members=[made], source=self)

    def penalize(self, quantized: Quantized) -> tuple[Tensor, dict[str, Tensor]]:
        """The losses of the quantizer in between; see `BaseQuantizer`."""
        total, losses = super().penalize(quantized)
        return total + connected_zero(quantized.vectors), losses

    def assign(self, latents: Tensor, valid: Tensor) -> Tensor:
        """The indices of what the map in gives; see `BaseQuantizer`."""
        return self.quantizer.assign(self.project_in(latents, valid), valid)

    def lookup(self, indices: Tensor) -> Tensor:
        """The vectors of the quantizer in between, mapped out; see `BaseQuantizer`."""
        return self._leave(self.quantizer.lookup(indices), self.has_index(indices))

    def chosen_vectors(self, quantized: Quantized) -> Tensor:
        """What was chosen, mapped out; see `BaseQuantizer`."""
        made = quantized.members[0]
        chosen = quantized.valid if self.passes_through else self.has_index(made.indices)
        return self._leave(self.quantizer.chosen_vectors(made), chosen)

    @torch.no_grad()
    def initialize(self, latents: Iterable[Tensor], *, samples: int | None = None, seed: int = 0) -> None:
        """Initialize the quantizer in between on what the map in gives; see `BaseQuantizer` and its own."""
        self.quantizer.initialize(self._entered(latents), samples=samples, seed=seed)

    def _entered(self, latents: Iterable[Tensor]) -> Iterator[Tensor]:
        for x in latents:
            vectors, valid, _ = self.open(x)
            with autocast_disabled(vectors.device):
                yield torch.where(valid.unsqueeze(-1), self.project_in(vectors, valid), torch.nan)

    def _leave(self, vectors: Tensor, chosen: Tensor) -> Tensor:
        return torch.where(chosen.unsqueeze(-1), self.project_out(vectors.contiguous(), chosen), 0)

    def extra_repr(self) -> str:
        """Sizes and layout."""
        return f"codebook_sizes={self.codebook_sizes}, dim={self.dim}, channel_dim={self.channel_dim}"

"""The pre-norm transformer block, whatever its attention is, and attention of every token to every other."""

from collections.abc import Callable

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vqkit.backbones.activations import GELU


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), and to that its own mlp(norm(...)): (B, ..., channels) to the same.

    Args:
        channels: width.
        attention: takes (B, ..., channels) to the same; `SelfAttention` for tokens (B, T, channels).
        mlp_ratio: width of the hidden layer relative to `channels`.
        activation: builds that of the hidden layer for its width.
        norm_eps: added to each variance.

    Source: Dosovitskiy et al. 2020 (ViT, arXiv:2010.11929), eq. 2 and 3.
    """

    def __init__(
        self,
        channels: int,
        attention: nn.Module,
        *,
        mlp_ratio: float = 4.0,
        activation: Callable[[int], nn.Module] = GELU,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        hidden = int(channels * mlp_ratio)
        self.attention_norm = nn.LayerNorm(channels, eps=norm_eps)
        self.attention = attention
        self.mlp = nn.Sequential(
            nn.LayerNorm(channels, eps=norm_eps),
            nn.Linear(channels, hidden),
            activation(hidden),
            nn.Linear(hidden, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, ..., channels) to the same."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(x)


class SelfAttention(nn.Module):
    """Attention of all tokens to all tokens; time and not memory grows with the square of their number.

    Args:
        channels: width.
        num_heads: must divide it.
        bias: whether queries, keys and values have one.

    Raises:
        ValueError: `num_heads` does not divide `channels`.
    """

    def __init__(self, channels: int, *, num_heads: int, bias: bool = True) -> None:
        super().__init__()
        if num_heads < 1 or channels % num_heads:
            raise ValueError(f"num_heads={num_heads}: expected a divisor of the width {channels}")
        self.num_heads = num_heads
        self.query_key_value = nn.Linear(channels, 3 * channels, bias=bias)
        self.output = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, channels) to the same."""
        maps = self.query_key_value(x)
        query, key, value = rearrange(maps, "b t (three h d) -> three b h t d", three=3, h=self.num_heads)
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.output(rearrange(attended, "b h t d -> b t (h d)"))


def initialize_linears(module: nn.Module) -> None:
    """Start all linear maps and convolutions inside of `module` as vision transformers do.

    Weights are normal with standard deviation 0.02, cut at -2 and 2, and biases are zero.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

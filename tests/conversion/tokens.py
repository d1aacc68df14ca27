"""What FQGAN and TiTok compute on tokens (B, N, C), as equations, in the way of `published.py`."""

import torch
from torch import Tensor

from tests.conversion.published import Published


class Transformers(Published):
    """Transformers that normalize before each of their parts, and at both ends."""

    def heads(self, width: int) -> int:
        """How many heads a transformer of this width has."""
        raise NotImplementedError

    def layer_norm(self, name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        normal = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        gain = self.tensor(f"{name}.weight", x.shape[-1], offset=1.0)
        return normal * gain + self.tensor(f"{name}.bias", x.shape[-1])

    def linear(self, name: str, x: Tensor, width: int, *kernel: int) -> Tensor:
        weight = self.tensor(f"{name}.weight", width, x.shape[-1], *kernel)
        return x @ weight.flatten(1).T + self.tensor(f"{name}.bias", width)

    def self_attention(self, name: str, x: Tensor) -> Tensor:
        width = x.shape[-1]
        weight = self.tensor(f"{name}.in_proj_weight", 3 * width, width)
        parts = (x @ weight.T + self.tensor(f"{name}.in_proj_bias", 3 * width)).chunk(3, dim=-1)
        size, joined = width // self.heads(width), []
        for query, key, value in zip(*(part.split(size, dim=-1) for part in parts), strict=True):
            joined.append(torch.softmax(query @ key.mT / size**0.5, dim=-1) @ value)
        return self.linear(f"{name}.out_proj", torch.cat(joined, dim=-1), width)

    def transformer(self, name: str, x: Tensor, depth: int) -> Tensor:
        x = self.layer_norm(f"{name}.ln_pre", x)
        for number in range(depth):
            block = f"{name}.transformer.{number}"
            x = x + self.self_attention(f"{block}.attn", self.layer_norm(f"{block}.ln_1", x))
            h = self.linear(f"{block}.mlp.c_fc", self.layer_norm(f"{block}.ln_2", x), 4 * x.shape[-1])
            h = h * (1 + torch.erf(h / 2**0.5)) / 2
            x = x + self.linear(f"{block}.mlp.c_proj", h, x.shape[-1])
        return self.layer_norm(f"{name}.ln_post", x)

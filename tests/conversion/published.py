"""The published models as equations: each layer asks for its weights by their published names and shapes.

What was asked for is the state dict, so names and shapes are written here once, beside what is computed with them.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

GROUPS = 32
PHIS = {4: [0, 1, 2, 3], 10: [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]}
"""Which convolution each scale has, by the number of scales, where VAR has four."""


@dataclass
class Published:
    """An encoder and a decoder of the VQGAN family; subclasses name their layers.

    Weights are random float32 numbers, computed with in float64; on the meta device there are shapes alone.
    """

    channels: int = 32
    multipliers: tuple[int, ...] = (1, 2)
    num_res_blocks: int = 1
    attention_levels: tuple[int, ...] = (1,)
    middle_attention: bool = True
    latent_channels: int = 6
    dim: int = 5
    codebook_size: int = 48
    device: str = "cpu"
    state: dict[str, Tensor] = field(default_factory=dict)

    latent_kernel_size = 1
    # names, here those of taming-transformers
    levels = {"encoder": "encoder.down.{level}", "decoder": "decoder.up.{level}"}  # or {place}, in the order of running
    parts = {"res": "block.{block}", "attn": "attn.{block}", "down": "downsample.conv", "up": "upsample.conv"}
    middle_parts = ("mid.block_1", "mid.attn_1", "mid.block_2")
    norm_out = "norm_out"
    shortcut = "nin_shortcut"

    def name(self, side: str, part: str, **places: int) -> str:
        """Of what is in a level."""
        return f"{self.levels[side]}.{self.parts[part]}".format(**places)

    # ------------------------------------------------------------------ layers

    def tensor(self, name: str, *shape: int, scale: float | Tensor = 0.1, offset: float | Tensor = 0.0) -> Tensor:
        if name not in self.state:
            random = torch.Generator().manual_seed(len(self.state)) if self.device == "cpu" else None
            self.state[name] = (offset + scale * torch.randn(shape, generator=random, device=self.device)).float()
        assert self.state[name].shape == shape
        return self.state[name].double()

    def conv(self, name: str, x: Tensor, width: int, size: int = 3) -> Tensor:
        weight = self.tensor(f"{name}.weight", width, x.shape[1], size, size)
        return F.conv2d(x, weight, self.tensor(f"{name}.bias", width), padding=size // 2)

    def kernel(self, name: str, x: Tensor, width: int, size: int = 3, stride: int = 1) -> Tensor:
        """A convolution without bias."""
        weight = self.tensor(f"{name}.weight", width, x.shape[1], size, size)
        return F.conv2d(x, weight, padding=size // 2, stride=stride)

    def norm(self, name: str, x: Tensor) -> Tensor:
        groups = x.reshape(len(x), GROUPS, -1)
        centred = groups - groups.mean(-1, keepdim=True)
        normal = (centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()).reshape(x.shape)
        gain, shift = (self.tensor(f"{name}.{kind}", x.shape[1]) for kind in ("weight", "bias"))
        return normal * gain.view(-1, 1, 1) + shift.view(-1, 1, 1)

    def swish_conv(self, norm: str, conv: str, x: Tensor, width: int) -> Tensor:
        x = self.norm(norm, x)
        return self.conv(conv, x * torch.sigmoid(x), width)

    def block(self, name: str, x: Tensor, width: int) -> Tensor:
        h = self.swish_conv(f"{name}.norm1", f"{name}.conv1", x, width)
        h = self.swish_conv(f"{name}.norm2", f"{name}.conv2", h, width)
        return h + (x if x.shape[1] == width else self.conv(f"{name}.{self.shortcut}", x, width, 1))

    def query_key_value(self, name: str, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.conv(f"{name}.{part}", x, x.shape[1], 1) for part in "qkv")

    def attention(self, name: str, x: Tensor) -> Tensor:
        query, key, value = (part.flatten(2) for part in self.query_key_value(name, self.norm(f"{name}.norm", x)))
        weights = torch.softmax(torch.einsum("bci,bcj->bij", query, key) / x.shape[1] ** 0.5, dim=2)
        return x + self.conv(
            f"{name}.proj_out", torch.einsum("bij,bcj->bci", weights, value).view(x.shape), x.shape[1], 1
        )

    def middle(self, side: str, x: Tensor) -> Tensor:
        names = [f"{side}.{part}" for part in self.middle_parts]
        x = self.block(names[0], x, x.shape[1])
        if self.middle_attention:
            x = self.attention(names[1], x)
        return self.block(names[2], x, x.shape[1])

    def down(self, name: str, x: Tensor) -> Tensor:
        weight = self.tensor(f"{name}.weight", x.shape[1], x.shape[1], 3, 3)
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), weight, self.tensor(f"{name}.bias", x.shape[1]), stride=2)

    def up(self, name: str, x: Tensor) -> Tensor:
        return self.conv(name, x.repeat_interleave(2, 2).repeat_interleave(2, 3), x.shape[1])

    # ------------------------------------------------------------------ the model

    def features(self, images: Tensor) -> Tensor:
        """What the last layers of the encoder read."""
        widths, last = [self.channels * multiplier for multiplier in self.multipliers], len(self.multipliers) - 1
        x = self.conv("encoder.conv_in", images, widths[0])
        for level, width in enumerate(widths):
            for block in range(self.num_res_blocks):
                x = self.block(self.name("encoder", "res", level=level, block=block), x, width)
                if level in self.attention_levels:
                    x = self.attention(self.name("encoder", "attn", level=level, block=block), x)
            if level < last:
                x = self.down(self.name("encoder", "down", level=level), x)
        return self.middle("encoder", x)

    def latents(self, images: Tensor) -> Tensor:
        x = self.features(images)
        x = self.swish_conv(f"encoder.{self.norm_out}", "encoder.conv_out", x, self.latent_channels)
        return self.conv("quant_conv", x, self.dim, self.latent_kernel_size)

    def images(self, quantized: Tensor) -> Tensor:
        widths = [self.channels * multiplier for multiplier in self.multipliers]
        x = self.conv("post_quant_conv", quantized, self.latent_channels, self.latent_kernel_size)
        x = self.middle("decoder", self.conv("decoder.conv_in", x, widths[-1]))
        for place, level in enumerate(reversed(range(len(widths)))):
            for block in range(self.num_res_blocks + 1):
                places = {"level": level, "place": place, "block": block}
                x = self.block(self.name("decoder", "res", **places), x, widths[level])
                if level in self.attention_levels:
                    x = self.attention(self.name("decoder", "attn", **places), x)
            if level > 0:
                x = self.up(self.name("decoder", "up", level=level, place=place), x)
        return self.swish_conv(f"decoder.{self.norm_out}", "decoder.conv_out", x, 3)

    def codes(self, name: str, latents: Tensor) -> Tensor:
        """A table among the latents, so that many codes are chosen."""
        spread, middle = latents.std((0, 2, 3)), latents.mean((0, 2, 3))
        return self.tensor(name, self.codebook_size, self.dim, scale=spread, offset=middle)

    def quantize(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Indices (B, h, w), and the vectors (B, D, h, w) that are decoded."""
        codes = self.codes("quantize.embedding.weight", latents)
        return self.read(codes, (latents.movedim(1, -1).unsqueeze(-2) - codes).square().sum(-1).argmin(-1))

    def read(self, codes: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        return indices, codes[indices].movedim(-1, 1)

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents, indices and pictures."""
        latents = self.latents(images.double())
        indices, quantized = self.quantize(latents)
        return latents, indices, self.images(quantized)

    def checkpoint(self) -> dict[str, Tensor]:
        """What was asked for, as it is published."""
        return self.state


@dataclass
class Taming(Published):
    """The plain one."""

    num_res_blocks: int = 2


class TamingGumbel(Published):
    """Logits by a convolution of their own; the largest is chosen."""

    def quantize(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        weight = self.tensor("quantize.proj.weight", self.codebook_size, self.dim, 1, 1)
        balance = -(weight.flatten(1) @ latents.mean((0, 2, 3)))  # without it one logit is the largest everywhere
        bias = self.tensor("quantize.proj.bias", self.codebook_size, scale=0.001, offset=balance)
        logits = F.conv2d(latents, weight, bias)
        return self.read(self.codes("quantize.embed.weight", latents), logits.argmax(1))


@dataclass
class IBQ(Published):
    """The largest dot product; averaged weights count, under names without dots."""

    num_res_blocks: int = 4

    def quantize(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        middle = F.normalize(latents.mean((0, 2, 3)), dim=0)
        table = torch.randn(self.codebook_size, self.dim, generator=torch.Generator().manual_seed(0)).double()
        table = table - (table @ middle).unsqueeze(1) * middle  # else a few codes are the largest everywhere
        codes = self.tensor("quantize.embedding.weight", *table.shape, scale=0.0, offset=table)
        return self.read(codes, torch.einsum("bdhw,kd->bhwk", latents, codes).argmax(-1))

    def checkpoint(self) -> dict[str, Tensor]:
        return with_averages(self.state)


def with_averages(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The averages of SEED-Voken beside weights of the last step, which are zeros here."""
    averages = {f"model_ema.{name.replace('.', '')}": value for name, value in state.items()}
    counters = {"model_ema.decay": torch.tensor(0.9), "model_ema.num_updates": torch.tensor(3, dtype=torch.int32)}
    return {name: torch.zeros_like(value) for name, value in state.items()} | averages | counters


class LlamaGen(Published):
    """Vectors and codes on the sphere; attention at the last level; the decoder's levels in order of execution."""

    levels = {"encoder": "encoder.conv_blocks.{level}", "decoder": "decoder.conv_blocks.{place}"}
    parts = Published.parts | {"res": "res.{block}"}
    middle_parts = ("mid.0", "mid.1", "mid.2")

    def quantize(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        self.tensor("quantize.codebook_used", 65536)
        codes = F.normalize(self.codes("quantize.embedding.weight", latents), dim=1)
        return self.read(codes, torch.einsum("bdhw,kd->bhwk", F.normalize(latents, dim=1), codes).argmax(-1))


@dataclass
class VAR(Published):
    """Fused projections, 3x3 convolutions next to the quantizer, and a sum over scales."""

    scales: tuple[int, ...] = (1, 2, 4, 8)

    latent_kernel_size = 3

    def query_key_value(self, name: str, x: Tensor) -> tuple[Tensor, ...]:
        return self.conv(f"{name}.qkv", x, 3 * x.shape[1], 1).chunk(3, dim=1)

    def quantize(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        codes = self.codes("quantize.embedding.weight", latents)
        self.tensor("quantize.ema_vocab_hit_SV", len(self.scales), self.codebook_size)
        rest, total, indices, size = latents, torch.zeros_like(latents), [], latents.shape[2:]
        for scale, phi in zip(self.scales, PHIS[len(self.scales)], strict=True):
            cells = F.interpolate(rest, size=(scale, scale), mode="area")
            grid = (cells.movedim(1, -1).unsqueeze(-2) - codes).square().sum(-1).argmin(-1)
            h = F.interpolate(codes[grid].movedim(-1, 1), size=size, mode="bicubic")
            h = 0.5 * h + 0.5 * self.conv(f"quantize.quant_resi.qresi_ls.{phi}", h, self.dim)
            rest, total = rest - h, total + h
            indices.append(grid.flatten(1))
        return torch.cat(indices, 1), total


class DiffusersVQ(Published):
    """Linear layers in the attention."""

    levels = {"encoder": "encoder.down_blocks.{level}", "decoder": "decoder.up_blocks.{place}"}
    parts = {
        "res": "resnets.{block}",
        "attn": "attentions.{block}",
        "down": "downsamplers.0.conv",
        "up": "upsamplers.0.conv",
    }
    middle_parts = ("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1")
    norm_out = "conv_norm_out"
    shortcut = "conv_shortcut"

    def linear(self, name: str, x: Tensor) -> Tensor:
        weight = self.tensor(f"{name}.weight", x.shape[1], x.shape[1])
        return torch.einsum("dc,bchw->bdhw", weight, x) + self.tensor(f"{name}.bias", x.shape[1]).view(-1, 1, 1)

    def attention(self, name: str, x: Tensor) -> Tensor:
        normal = self.norm(f"{name}.group_norm", x)
        query, key, value = (self.linear(f"{name}.{part}", normal).flatten(2) for part in self.projections)
        weights = torch.softmax(torch.einsum("bci,bcj->bij", query, key) / x.shape[1] ** 0.5, dim=2)
        return x + self.linear(f"{name}.{self.output}", torch.einsum("bij,bcj->bci", weights, value).view(x.shape))

    projections: tuple[str, ...] = ("to_q", "to_k", "to_v")
    output = "to_out.0"


class OldDiffusersVQ(DiffusersVQ):
    """The names before diffusers 0.16."""

    projections = ("query", "key", "value")
    output = "proj_attn"


class Transformers(Published):
    """Layers on tokens (B, N, width), with the names of CLIP."""

    def heads(self, width: int) -> int:
        """Of the attention."""
        return 8

    def layer_norm(self, name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        normal = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        gain = self.tensor(f"{name}.weight", x.shape[-1], offset=1.0)
        return normal * gain + self.tensor(f"{name}.bias", x.shape[-1])

    def linear(self, name: str, x: Tensor, width: int, *kernel: int) -> Tensor:
        weight = self.tensor(f"{name}.weight", width, x.shape[-1], *kernel)
        return x @ weight.flatten(1).T + self.tensor(f"{name}.bias", width)

    def multi_head(self, name: str, x: Tensor) -> Tensor:
        width = x.shape[-1]
        weight = self.tensor(f"{name}.in_proj_weight", 3 * width, width)
        parts = (x @ weight.T + self.tensor(f"{name}.in_proj_bias", 3 * width)).chunk(3, dim=-1)
        size, joined = width // self.heads(width), []
        for first in range(0, width, size):
            query, key, value = (part[..., first : first + size] for part in parts)
            joined.append(torch.softmax(query @ key.mT / size**0.5, dim=-1) @ value)
        return self.linear(f"{name}.out_proj", torch.cat(joined, dim=-1), width)

    def transformer(self, name: str, x: Tensor, depth: int) -> Tensor:
        """Of tokens (B, T, width)."""
        x = self.layer_norm(f"{name}.ln_pre", x)
        for n in range(depth):
            block = f"{name}.transformer.{n}"
            x = x + self.multi_head(f"{block}.attn", self.layer_norm(f"{block}.ln_1", x))
            h = self.linear(f"{block}.mlp.c_fc", self.layer_norm(f"{block}.ln_2", x), 4 * x.shape[-1])
            h = h * (1 + torch.erf(h / 2**0.5)) / 2
            x = x + self.linear(f"{block}.mlp.c_proj", h, x.shape[-1])
        return self.layer_norm(f"{name}.ln_post", x)

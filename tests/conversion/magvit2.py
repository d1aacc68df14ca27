"""Open-MAGVIT2 and SimVQ as equations, in the way of `published.py`."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tests.conversion.published import Published, with_averages

TABLE = "quantize.embedding.weight"


@dataclass
class MAGVIT2(Published):
    """Their encoder and decoder; `channels` x `multipliers`, no attention, nothing beside the quantizer."""

    num_middle_blocks: int = 2
    adapts: bool = True

    def strided(self, name: str, x: Tensor) -> Tensor:
        return self.kernel(name, x, x.shape[1], stride=2) + self.tensor(f"{name}.bias", x.shape[1]).view(-1, 1, 1)

    def block(self, name: str, x: Tensor, width: int) -> Tensor:
        h = x
        for number in (1, 2):
            h = self.norm(f"{name}.norm{number}", h)
            h = self.kernel(f"{name}.conv{number}", h * torch.sigmoid(h), width)
        return h + (x if x.shape[1] == width else self.kernel(f"{name}.nin_shortcut", x, width, 1))

    def depth_to_space(self, name: str, x: Tensor) -> Tensor:
        """Channel (2 i + j) C + c of the convolution is channel c of the pixel (i, j) in each 2 x 2."""
        batch, width, rows, columns = x.shape
        quarters = self.conv(name, x, 4 * width).view(batch, 2, 2, width, rows, columns)
        doubled = torch.empty(batch, width, 2 * rows, 2 * columns, dtype=x.dtype, device=x.device)
        for i in range(2):
            for j in range(2):
                doubled[:, :, i::2, j::2] = quarters[:, i, j]
        return doubled

    def adaptive(self, name: str, x: Tensor, latents: Tensor) -> Tensor:
        places = latents.flatten(2)
        centred = places - places.mean(-1, keepdim=True)
        deviation = (centred.square().sum(-1) / (places.shape[-1] - 1) + 1e-6).sqrt()
        gain, shift = (
            style @ self.tensor(f"{name}.{kind}.weight", x.shape[1], self.dim).T
            + self.tensor(f"{name}.{kind}.bias", x.shape[1])
            for kind, style in (("gamma", deviation), ("beta", places.mean(-1)))
        )
        groups = x.reshape(len(x), 32, -1)
        normal = (groups - groups.mean(-1, keepdim=True)) / (groups.var(-1, False, keepdim=True) + 1e-6).sqrt()
        return gain[:, :, None, None] * normal.reshape(x.shape) + shift[:, :, None, None]

    def blocks(self, name: str, x: Tensor, width: int, number: int) -> Tensor:
        for block in range(number):
            x = self.block(f"{name}.{block}", x, width)
        return x

    def latents(self, images: Tensor) -> Tensor:
        x = self.kernel("encoder.conv_in", images, self.channels)
        for level, multiplier in enumerate(self.multipliers):
            x = self.blocks(f"encoder.down.{level}.block", x, self.channels * multiplier, self.num_res_blocks)
            if level < len(self.multipliers) - 1:
                x = self.strided(f"encoder.down.{level}.downsample", x)
        x = self.blocks("encoder.mid_block", x, x.shape[1], self.num_middle_blocks)
        x = self.norm("encoder.norm_out", x)
        x = self.kernel("encoder.conv_out", x * torch.sigmoid(x), self.dim, 1)
        balance = -x.mean((0, 2, 3))  # without it most channels have one sign everywhere
        return x + self.tensor("encoder.conv_out.bias", self.dim, scale=0.001, offset=balance).view(-1, 1, 1)

    def images(self, quantized: Tensor) -> Tensor:
        x = self.conv("decoder.conv_in", quantized, self.channels * self.multipliers[-1])
        x = self.blocks("decoder.mid_block", x, x.shape[1], self.num_middle_blocks)
        for level in reversed(range(len(self.multipliers))):
            if self.adapts:
                x = self.adaptive(f"decoder.adaptive.{level}", x, quantized)
            width = self.channels * self.multipliers[level]
            x = self.blocks(f"decoder.up.{level}.block", x, width, self.num_res_blocks)
            if level > 0:
                x = self.depth_to_space(f"decoder.up.{level}.upsample.conv1", x)
        return self.swish_conv("decoder.norm_out", "decoder.conv_out", x, 3)


@dataclass
class OpenMAGVIT2Model(MAGVIT2):
    """Signs, of which channel n is bit n of the index; averaged weights count."""

    dim: int = 14

    def quantize(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        bits = latents > 0
        index = sum(bits[:, n].long() * 2**n for n in range(self.dim))
        return index, torch.where(bits, 1.0, -1.0).double()

    def checkpoint(self) -> dict[str, Tensor]:
        return with_averages(self.state)


@dataclass
class SimVQModel(MAGVIT2):
    """The nearest row of a table behind a linear map; there is no average of the table, which is not trained."""

    adapts: bool = False

    def quantize(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        table = self.tensor(TABLE, self.codebook_size, self.dim, scale=self.dim**-0.5)
        spread = torch.diag(latents.std((0, 2, 3))) * self.dim**0.5  # codes among the latents, so that many are chosen
        weight = self.tensor("quantize.embedding_proj.weight", self.dim, self.dim, scale=0.01, offset=spread)
        bias = self.tensor("quantize.embedding_proj.bias", self.dim, scale=0.01)
        codes = torch.einsum("kd,ed->ke", table, weight) + bias
        return self.read(codes, (latents.movedim(1, -1).unsqueeze(-2) - codes).square().sum(-1).argmin(-1))

    def checkpoint(self) -> dict[str, Tensor]:
        checkpoint = with_averages(self.state)
        del checkpoint[f"model_ema.{TABLE.replace('.', '')}"]
        return checkpoint | {TABLE: self.state[TABLE]}

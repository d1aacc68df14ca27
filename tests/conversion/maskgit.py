"""MaskGIT's VQGAN as equations, under the names of bytedance/1d-tokenizer."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tests.conversion.published import Published


@dataclass
class MaskGIT(Published):
    """No attention, averages downwards, no biases in blocks; pictures in [0, 1]. Latents have `dim` channels."""

    multipliers: tuple[int, ...] = (1, 2)
    num_res_blocks: int = 2

    def block(self, name: str, x: Tensor, width: int) -> Tensor:
        h = x
        for number in (1, 2):
            h = self.norm(f"{name}.norm{number}", h)
            h = self.kernel(f"{name}.conv{number}", h * torch.sigmoid(h), width)
        return h + (x if x.shape[1] == width else self.kernel(f"{name}.nin_shortcut", h, width, 1))

    def blocks(self, name: str, x: Tensor, width: int) -> Tensor:
        for number in range(self.num_res_blocks):
            x = self.block(f"{name}.{number}", x, width)
        return x

    def latents(self, images: Tensor) -> Tensor:
        x = self.kernel("encoder.conv_in", (images + 1) / 2, self.channels * self.multipliers[0])
        for level, multiplier in enumerate(self.multipliers):
            if level > 0:
                x = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
            x = self.blocks(f"encoder.down.{level}.block", x, self.channels * multiplier)
        x = self.norm("encoder.norm_out", self.blocks("encoder.mid", x, x.shape[1]))
        return self.conv("encoder.conv_out", x * torch.sigmoid(x), self.dim, 1)

    def images(self, quantized: Tensor) -> Tensor:
        return 2 * self.pixels(quantized, "decoder") - 1

    def pixels(self, quantized: Tensor, name: str) -> Tensor:
        """Pictures about in [0, 1], by the decoder of this name."""
        x = self.conv(f"{name}.conv_in", quantized, self.channels * self.multipliers[-1])
        x = self.blocks(f"{name}.mid", x, x.shape[1])
        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            x = self.blocks(f"{name}.up.{level}.block", x, self.channels * multiplier)
            if level > 0:
                x = self.up(f"{name}.up.{level}.upsample_conv", x)
        self.tensor(f"{name}.conv_out.bias", 3, offset=0.5)  # as bright as the pictures
        return self.swish_conv(f"{name}.norm_out", f"{name}.conv_out", x, 3)

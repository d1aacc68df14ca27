"""Residual discriminators that judge an image as a whole: StyleGAN2's, and what MaskGIT and MAGVIT made of it."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.core.discriminator import Discriminator, DiscriminatorOutput
from trainers.image.discriminators.blur import Blur, BlurPool


class ResidualDiscriminator(Discriminator):
    """A layer at full size, residual blocks that halve the sides down to 4 pixels, and a head with one logit.

    A derived class makes `layers` (the first and the blocks, in order) and `head`, from `widths`.

    Args:
        in_channels: C of the images.
        resolution: side of the square images in pixels, a power of two from 8 on.
        channel_base: channels of a map are this divided by its side.
        channel_max: but no more than this.

    Attributes:
        widths: channels at the sides `resolution`, half of it, ..., 4.

    Raises:
        ValueError: an argument is out of its range; in `forward` if the images have another size.
    """

    axes = ("height", "width")
    layers: nn.ModuleList
    head: nn.Module

    def __init__(self, in_channels: int, resolution: int, channel_base: int, channel_max: int) -> None:
        super().__init__(in_channels)
        if resolution < 8 or resolution & (resolution - 1):
            raise ValueError(f"resolution={resolution}: expected a power of two from 8 on, the side of the images")
        if channel_base < resolution:
            raise ValueError(f"channel_base={channel_base}: expected at least the resolution, {resolution}")
        if channel_max < 1:
            raise ValueError(f"channel_max={channel_max}: expected at least 1")
        self.resolution = resolution
        sides = [2**power for power in range(resolution.bit_length() - 1, 1, -1)]
        self.widths = [min(channel_base // side, channel_max) for side in sides]

    def judge(self, batch: Tensor) -> list[DiscriminatorOutput]:
        """`forward` behind its checks."""
        if batch.shape[-2:] != (self.resolution, self.resolution):
            raise ValueError(
                f"batch has shape {tuple(batch.shape)}: expected images of {self.resolution} x {self.resolution} "
                "pixels; set resolution to the side of the crops"
            )
        features, x = [], batch
        for layer in self.layers:
            x = layer(x)
            features.append(x)
        return [DiscriminatorOutput(self.head(x), features)]


class BlurResidualDiscriminator(ResidualDiscriminator):
    """The discriminator of MaskGIT's and MAGVIT's tokenizers: residual blocks with blurred strides, one logit.

    Source: Chang et al. 2022 (MaskGIT, arXiv:2202.04200), Yu et al. 2023 (MAGVIT, 2212.05199; MAGVIT-2, 2310.05737), in
    their code: a convolution of 3 x 3; blocks of two of 3 x 3 with `BlurPool` between, beside a blurred one of 1 x 1
    without bias, their sum divided by sqrt(2); one of 3 x 3 and two matrices. Leaky rectifiers of slope 0.2, kernels
    from Glorot's uniform distribution, biases from 0. Items of a batch do not see each other.
    Differs: MAGVIT's convolutions of video have a time axis too.

    Args:
        in_channels: C of the images.
        resolution: side of the square images in pixels, a power of two from 8 on.
        channel_base: channels of a map are this divided by its side; 16384 as published: 64 at 256 pixels.
        channel_max: but no more than this.

    Raises:
        ValueError: an argument is out of its range; in `forward` if the images have another size.

    Examples:
        >>> (output,) = BlurResidualDiscriminator(resolution=16, channel_base=64)(torch.zeros(2, 3, 16, 16))
        >>> output.logits.shape, len(output.features)
        (torch.Size([2, 1]), 3)
    """

    def __init__(
        self, in_channels: int = 3, *, resolution: int = 256, channel_base: int = 16384, channel_max: int = 512
    ) -> None:
        super().__init__(in_channels, resolution, channel_base, channel_max)
        first = nn.Sequential(nn.Conv2d(in_channels, self.widths[0], 3, padding=1), nn.LeakyReLU(0.2))
        self.layers = nn.ModuleList([first, *(_BlurBlock(*pair) for pair in pairwise(self.widths))])
        last = self.widths[-1]
        self.head = nn.Sequential(
            nn.Conv2d(last, last, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Linear(16 * last, last),
            nn.LeakyReLU(0.2),
            nn.Linear(last, 1),
        )
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)


class _BlurBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_channels, in_channels, 3, padding=1)
        self.pool = BlurPool()
        self.second = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.skip = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.pool(F.leaky_relu(self.first(x), 0.2))
        branch = F.leaky_relu(self.second(branch), 0.2)
        return (self.skip(self.pool(x)) + branch) / math.sqrt(2)


class StyleGAN2Discriminator(ResidualDiscriminator):
    """StyleGAN2's residual discriminator: equalized learning rates, blurred strides, a minibatch deviation, one logit.

    Items are coupled by the minibatch deviation: the standard deviations over a group of items of one call, averaged,
    are one more map for the last layers. Groups have as many items as the largest number up to 4 that divides the
    batch. Originals and reconstructions are apart, and so are processes, which therefore differ from one with the
    joined batch.

    Source: Karras et al. 2020 (StyleGAN2, arXiv:1912.04958), sec. 4.1, fig. 7 and its code; equalized learning rate and
    minibatch deviation: Karras et al. 2018 (1710.10196), sec. 4.1 and 3. Kernels are N(0, 1) divided by sqrt(fan in) as
    they are used, leaky rectifiers of slope 0.2 are multiplied by sqrt(2).
    Differs: LlamaGen's `stylegan` has neither of the two, and learned strided convolutions behind a blur of 3 x 3.

    Args:
        in_channels: C of the images.
        resolution: side of the square images in pixels, a power of two from 8 on.
        channel_base: channels of a map are this divided by its side; 32768 in configuration F: 128 at 256 pixels.
        channel_max: but no more than this.

    Raises:
        ValueError: an argument is out of its range; in `forward` if the images have another size.

    Examples:
        >>> (output,) = StyleGAN2Discriminator(resolution=16, channel_base=64)(torch.zeros(2, 3, 16, 16))
        >>> output.logits.shape, len(output.features)
        (torch.Size([2, 1]), 3)
    """

    def __init__(
        self, in_channels: int = 3, *, resolution: int = 256, channel_base: int = 32768, channel_max: int = 512
    ) -> None:
        super().__init__(in_channels, resolution, channel_base, channel_max)
        first = nn.Sequential(_EqualizedConvolution(in_channels, self.widths[0], 1), _Rectifier())
        self.layers = nn.ModuleList([first, *(_EqualizedBlock(*pair) for pair in pairwise(self.widths))])
        last = self.widths[-1]
        self.head = nn.Sequential(
            _MinibatchDeviation(),
            _EqualizedConvolution(last + 1, last, 3, padding=1),
            _Rectifier(),
            nn.Flatten(),
            _EqualizedMatrix(16 * last, last),
            _Rectifier(),
            _EqualizedMatrix(last, 1),
        )


class _Rectifier(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, 0.2) * math.sqrt(2)


class _EqualizedConvolution(nn.Conv2d):
    def reset_parameters(self) -> None:
        _standard_normal(self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight / math.sqrt(self.weight[0].numel()), self.bias)


class _EqualizedMatrix(nn.Linear):
    def reset_parameters(self) -> None:
        _standard_normal(self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight / math.sqrt(self.in_features), self.bias)


def _standard_normal(weight: Tensor, bias: Tensor | None) -> None:
    nn.init.normal_(weight)
    if bias is not None:
        nn.init.zeros_(bias)


class _EqualizedBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            _EqualizedConvolution(in_channels, in_channels, 3, padding=1),
            _Rectifier(),
            Blur(padding=2),
            _EqualizedConvolution(in_channels, out_channels, 3, stride=2),
            _Rectifier(),
        )
        self.skip = nn.Sequential(
            Blur(padding=1), _EqualizedConvolution(in_channels, out_channels, 1, stride=2, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        return (self.branch(x) + self.skip(x)) / math.sqrt(2)


class _MinibatchDeviation(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        group = max(size for size in range(1, 5) if len(x) % size == 0)
        groups = x.unflatten(0, (group, -1)).float()
        deviation = (groups.var(0, correction=0) + 1e-8).sqrt().mean((1, 2, 3))
        plane = deviation.to(x.dtype).repeat(group)[:, None, None, None].expand(-1, 1, *x.shape[2:])
        return torch.cat([x, plane], dim=1)

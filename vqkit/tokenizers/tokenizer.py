"""Encoder, quantizer and decoder as one module: from data to indices and back."""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vqkit import runtime
from vqkit.backbones.protocol import properties_of
from vqkit.quantizers.base import BaseQuantizer, QuantizerOutput
from vqkit.quantizers.initialization import INITIALIZE_FIRST
from vqkit.runtime import check_plain, warn_caller
from vqkit.saving.pretrained import Pretrained
from vqkit.sharding import as_forward, refuse_sharded

LOOKED_AT = 16
"""Batches of which a tokenizer compares the values with its range, before it stops looking."""


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
        quantizer: its `channel_dim` is that of the latents: 1 for convolutional backbones, -1 for latent tokens. With
            `GaussianBottleneck` in its place the model is a continuous autoencoder; `encode` and `decode`, which need
            indices, are refused.
        decoder: from latents to data.
        value_range: least and greatest value of the data, for which the tokenizer is trained; it is saved with it, and
            files of versions that did not save it have [-1, 1]. None takes data of any type and range.

    Raises:
        ValueError: if encoder, quantizer and decoder declare different `dim` or `channel_dim`, the encoder has no
            `moments` for a quantizer that takes them, or `value_range` is not (least, greatest).

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

    def __init__(
        self,
        encoder: nn.Module,
        quantizer: BaseQuantizer,
        decoder: nn.Module,
        *,
        value_range: tuple[float, float] | None = (-1.0, 1.0),
    ) -> None:
        super().__init__()
        bounds = (-math.inf, *(value_range or (0.0, 1.0)), math.inf)
        if len(bounds) != 4 or not all(least < greatest for least, greatest in itertools.pairwise(bounds)):
            raise ValueError(f"value_range={value_range}: expected (least, greatest), such as (-1.0, 1.0), or None")
        if quantizer.moments > 1 and not hasattr(encoder, "moments"):
            raise ValueError(
                f"quantizer={type(quantizer).__name__} takes means and log-variances, and encoder="
                f"{type(encoder).__name__} has no method moments that gives them: build it with "
                f"dim={2 * quantizer.dim} inside of vqkit.backbones.gaussian.GaussianEncoder"
            )
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
        self.value_range = None if value_range is None else (value_range[0], value_range[1])
        self._unlooked = LOOKED_AT

    def forward(self, data: Tensor) -> TokenizerOutput:
        """Encode, quantize and decode.

        Args:
            data: (B, C, ...) in `value_range`, for images (B, 3, H, W).

        Raises:
            ValueError: `data` is not floating point. Where the first batches clearly lie in another range, a warning
                says so, once; on a GPU only in `encode` and `initialize`, since reading values waits for it.
        """
        self._check_values(data)
        return self._reconstruct(data)

    @torch.no_grad()
    def encode(self, data: Tensor) -> Tensor:
        """Indices of the data.

        Args:
            data: (B, C, ...) in `value_range`, for images (B, 3, H, W).

        Returns:
            int64, the latents' shape without channels: (B, h, w) for images, (B, T) for latent tokens;
            composites add a last axis of levels.

        Raises:
            ValueError: as for `forward`.
        """
        self._check_values(data, wait=True)
        return self._indices(data)

    @as_forward
    def decode(self, indices: Tensor) -> Tensor:
        """Data from indices: what `encode` returned, or a generator sampled.

        Args:
            indices: int64, in the shape of `encode`, or those of the first tokens where the decoder takes prefixes; -1
                stands for a latent of zeros.

        Returns:
            (B, C, ...), for images (B, 3, H, W), about in `value_range` and not clipped.
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
        refuse_sharded(self, "initialize", INITIALIZE_FIRST)
        with runtime.evaluating(self.encoder):
            self.quantizer.initialize(self._latents(loader), samples=samples, seed=seed)

    def _reconstruct(self, data: Tensor) -> TokenizerOutput:
        """`forward` of data that are checked."""
        encode: Any = self.encoder if self.quantizer.moments == 1 else self.encoder.moments
        output = self.quantizer(encode(in_dtype_of(self.encoder, data)))
        return TokenizerOutput(self._decode(output.quantized), output)

    @as_forward
    def _indices(self, data: Tensor) -> Tensor:
        """`encode` of data that are checked."""
        return self.quantizer.encode(self.encoder(in_dtype_of(self.encoder, data)))

    def _check_values(self, data: Tensor, *, wait: bool = False) -> None:
        """Refuse integers, and warn once of values that clearly lie in another range.

        Args:
            data: what shall be encoded.
            wait: whether its values may be waited for, where they are on a GPU.
        """
        check_plain("data", data)
        if self.value_range is None:
            return
        least, greatest = self.value_range
        if not data.is_floating_point():
            raise ValueError(
                f"data has dtype {data.dtype}: expected floating point in [{least:g}, {greatest:g}] "
                f"({self._conversions})"
            )
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or not self._unlooked or not data.numel():
            return
        if data.device.type not in runtime.READ_WITHOUT_WAITING and (not wait or _is_captured(data)):
            return
        try:
            lowest, highest = map(float, data.detach().aminmax())
        except RuntimeError:  # transforms such as vmap hold no values
            return
        self._unlooked -= 1
        if self._lies_elsewhere(lowest, highest, least, greatest):
            self._unlooked = 0
            warn_caller(
                f"data has values from {lowest:.4g} to {highest:.4g}, and this {type(self).__name__} expects "
                f"[{least:g}, {greatest:g}]: indices of other data than it was trained for are worse; convert them "
                f"({self._conversions})"
            )

    @property
    def _conversions(self) -> str:
        """How other numbers become data, for a message."""
        low, high = self.value_range or (0, 1)
        return f"from 0 ... 255: data / 255 * {high - low:g} {low:+g}; from [0, 1]: data * {high - low:g} {low:+g}"

    def _lies_elsewhere(self, least: float, greatest: float, low: float, high: float) -> bool:
        """Whether a batch with values from `least` to `greatest` is clearly in another range than [low, high].

        There are three signs:

        - A value lies more than four widths of the range away from the middle of the range.
        - The range has no negative values, and the least value lies more than a quarter of the width below it.
        - The range has negative values, the batch has none, and the batch fills [0, high]: its least value is below
          high / 512, and its greatest above high / 2. Bright pictures of 8 bits in [-1, 1] do not show this sign: their
          values are odd multiples of 1 / 255, so that none of them lies between 0 and 1 / 512.
        """
        far = max(abs(value - (low + high) / 2) for value in (least, greatest))
        if far > 4 * (high - low):
            return math.isfinite(far)
        if low >= 0:
            return low - least > (high - low) / 4
        return 0 <= least < high / 512 and greatest > high / 2

    def _decode(self, quantized: Tensor) -> Tensor:
        # One dtype and one order in memory, however the vectors came: convolutions round differently for each order.
        return self.decoder(in_dtype_of(self.decoder, quantized).contiguous())

    def _latents(self, loader: Iterable[Any]) -> Iterator[Tensor]:
        weight = next(self.encoder.parameters(), None)
        for batch in loader:
            data = first_tensor(batch)
            self._check_values(data, wait=True)
            with torch.no_grad():
                latents = self.encoder(in_dtype_of(self.encoder, data if weight is None else data.to(weight.device)))
            yield latents


def in_dtype_of(module: nn.Module, data: Tensor) -> Tensor:
    """Floating-point data in the dtype of the module's first floating-point parameter; other data as they are."""
    if not data.is_floating_point():
        return data
    weight = next((weight for weight in module.parameters() if weight.is_floating_point()), data)
    return data.to(weight.dtype)


def _is_captured(data: Tensor) -> bool:
    """Whether a CUDA graph is being recorded, into which reading a value would break."""
    return data.is_cuda and torch.cuda.is_current_stream_capturing()


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

"""Causal modules on a signal that arrives in pieces.

    >>> with streaming(encoder):                       # doctest: +SKIP
    ...     for chunk in chunks:
    ...         latents = encoder(chunk)

A layer that looks back in time derives from `StreamingLayer` and passes its input through `preceded`: outside of a
stream that puts zeros in front (or the mirrored recording, see `edges`), inside of one what came before. That is all
there is to it, so that what is computed is written once: the first chunk sees what the beginning of a recording sees,
and every later one sees what it would have seen in one pass.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from vqkit.backbones.edges import PaddingMode, beginning, padded

Module = TypeVar("Module", bound=nn.Module)


@dataclass(eq=False)
class Stream:
    """The state of one layer in a stream.

    Attributes:
        past: the last inputs, as many as the layer looks back, with padding for those before the first; for a layer
            that is recurrent its state. None before the first chunk.
        seen: how many inputs, in time steps, came so far.
        weight: filters that are computed from parameters, once per stream; None where they are not.
    """

    past: Tensor | None = None
    seen: int = 0
    weight: Tensor | None = None


class StreamingLayer(nn.Module):
    """A layer that may look back in time, and can keep what it looks back at.

    Attributes:
        causal: whether no output depends on a later input; others cannot stream.
        stream: what is remembered while `streaming` is open, None otherwise. No part of the state: it is not saved.
    """

    causal: bool
    stream: Stream | None = None

    def preceded(self, x: Tensor, steps: int, *, after: int = 0, dim: int = -1, mode: PaddingMode = "zeros") -> Tensor:
        """The input with what came before it.

        Args:
            x: any shape.
            steps: how far the layer looks back along `dim`; the same in every call.
            after: steps to put behind; a causal layer has none.
            dim: the axis of time, counted from the end: -1 or -2 and so on; the last one but for zeros.
            mode: what stands before the first and behind the last step of a recording.

        Returns:
            x with `steps` more entries in front: of the padding, or in a stream the last ones of the chunks before. Not
            to be written to: a stream may keep the end of it.

        Raises:
            ValueError: in a stream, if x differs from the chunks before in another axis than time, or in its device; if
                the first chunk is too short to be mirrored.
        """
        if not steps + after:
            return x
        if self.stream is None:
            return padded(x, steps, after, mode, dim=dim)
        past = self.stream.past
        if past is None:
            past = beginning(x, steps, mode, dim=dim)
        check_same_stream(past, x, dim)
        joined = torch.cat([past, x], dim)
        past = joined.narrow(dim, joined.shape[dim] - steps, steps)
        # A copy of the end of a long chunk: a view would keep the whole alive until the next.
        self.stream.past = past.clone() if joined.shape[dim] > 2 * steps else past
        self.stream.seen += x.shape[dim]
        return joined


@contextmanager
def streaming(module: Module) -> Iterator[Module]:
    """Context in which the calls of a causal module continue each other, chunk by chunk.

    Inside, gradients are off, and each causal layer below `module` keeps the end of its input for the next call; what
    is kept is dropped on exit. Chunks are whole frames, in order, of one batch on one device; their lengths may differ.
    The algorithmic latency of the causal backbones is one frame (`downsampling_factor` samples): a frame waits for its
    last sample and for nothing after it. After an error inside, open a new stream.

    Args:
        module: an encoder, a decoder or a model of both, whose layers are all causal. Only one stream at a time is open
            on a layer: for two signals give them as one batch, or use a copy of the module.

    Yields:
        The module.

    Raises:
        ValueError: if a layer is not causal or none of them remembers anything, and inside if a chunk does not continue
            the ones before, or the first is too short for layers that mirror it.
        RuntimeError: if a stream is open on the module or on a part of it.
    """
    layers = _streaming_layers(module)
    for layer in layers:
        layer.stream = Stream()
    try:
        with torch.no_grad():
            yield module
    finally:
        for layer in layers:
            layer.stream = None


def _streaming_layers(module: nn.Module) -> list[StreamingLayer]:
    layers = []
    for name, part in module.named_modules():
        where = f"{type(module).__name__}{'.' if name else ''}{name}"
        if getattr(part, "causal", True) is False:
            raise ValueError(
                f"{where} is not causal (causal=False), so a frame depends on samples that a stream does not have yet:"
                " build the model with causal=True, or process it in overlapping blocks"
            )
        if getattr(part, "causal", False) and not any(isinstance(inner, StreamingLayer) for inner in part.modules()):
            raise ValueError(
                f"{where} is causal but remembers nothing between chunks, so it would begin anew with each: derive"
                " what looks back in it from vqkit.backbones.streaming.StreamingLayer"
            )
        if isinstance(part, StreamingLayer):
            if part.stream is not None:
                raise RuntimeError(
                    f"{where} is in a stream already: close it first; for two signals at once give them as one batch or"
                    " stream a copy.deepcopy of the module, made outside of a stream"
                )
            layers.append(part)
    if not layers:
        raise ValueError(f"{type(module).__name__} has no layer that streams: expected causal backbones of vqkit")
    return layers


def check_same_stream(past: Tensor, x: Tensor, dim: int) -> None:
    """Refuse a chunk that differs from what is kept in another axis than `dim`, that of time, or in its device.

    Raises:
        ValueError: if it does.
    """
    if past.device != x.device:
        raise ValueError(
            f"the stream began on {past.device} and continues on {x.device}: open a new one after moving the model"
        )
    before, now = list(past.shape), list(x.shape)
    del before[dim], now[dim]
    if before != now:
        raise ValueError(
            f"the stream began with {before[0]} signals and continues with {now[0]} (shapes without time: {before} and"
            f" {now}): keep the batch as it is, or open a new stream"
        )

"""A codebook behind a layer of any network, and what happens if its codes are others."""

import difflib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from vqkit.indices import check_indices
from vqkit.precision import narrowed
from vqkit.quantizers.base import BaseQuantizer
from vqkit.quantizers.output import QuantizerOutput
from vqkit.quantizers.pursuit import PursuitQuantizer

Intervention = Callable[[Tensor], Tensor]
"""From the indices that were chosen to those that are decoded in their place."""


class Attachment:
    """A quantizer that stands behind a layer: what the layer gives is quantized before the network goes on.

    The network is changed by one forward hook and nothing else: its parameters, its `state_dict` and its modules stay
    what they are, and after `remove()` it computes bit for bit what it computed before. All state is here and in the
    quantizer, so that several networks, layers and attachments know nothing of each other. Used as a context manager it
    removes itself at the end.

    The quantizer is no part of the network. Move it to the network's device, set its mode, and give its parameters to
    an optimizer; `output.loss` is the quantizer's own, of the last call of the layer.

    Args:
        layer: whose output is quantized.
        path: of the layer, for messages.
        quantizer: whose `dim` and `channel_dim` fit that output.

    Attributes:
        path: as given.
        quantizer: as given.
        output: of the quantizer at the last call of the layer, before interventions; None before the first.
        indices: those that the network went on with at that call, after interventions; None before the first.
    """

    def __init__(self, layer: nn.Module, path: str, quantizer: BaseQuantizer) -> None:
        self.path = path
        self.quantizer = quantizer
        self.output: QuantizerOutput | None = None
        self.indices: Tensor | None = None
        self._interventions: list[Intervention] = []
        self._hook = layer.register_forward_hook(self._behind)

    def remove(self) -> None:
        """Take the quantizer away; a second time nothing happens."""
        self._hook.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    @contextmanager
    def overwrite(self, indices: Tensor, where: Tensor | None = None) -> Iterator[None]:
        """While it is open, the layer's codes are these.

        Args:
            indices: integers that broadcast to the indices of the quantizer, (B, *S) or (B, *S, levels); -1 for no
                code. The codes that were chosen anyway change nothing.
            where: bool, broadcasts to the positions (B, *S): True where codes are overwritten; None for everywhere.

        Raises:
            ValueError: `indices` are no codes of the quantizer, or `where` is not bool; or in the forward, if a shape
                does not fit.
        """
        quantizer = self.quantizer
        sizes = quantizer.codebook_sizes if quantizer.level_axis else (quantizer.codebook_size,)
        # Levels that are broadcast have no axis of their own to check against.
        levelled = quantizer.level_axis and indices.ndim > 0 and indices.shape[-1] == len(sizes)
        check_indices(indices, sizes if levelled else (min(sizes),), level_axis=levelled)
        if where is not None and where.dtype != torch.bool:
            raise ValueError(f"where has dtype {where.dtype}: expected torch.bool, True where codes are overwritten")

        def overwritten(chosen: Tensor) -> Tensor:
            everywhere = torch.ones((), dtype=torch.bool, device=chosen.device)
            places = everywhere if where is None else where.to(chosen.device)
            if where is not None and quantizer.level_axis:
                places = places.unsqueeze(-1)
            given = indices.to(chosen.device, chosen.dtype)
            for name, tensor in (("indices", given), ("where", places)):
                if not _broadcasts(tensor, chosen):
                    raise ValueError(
                        f"{name} of the intervention on {self.path!r} has shape {tuple(tensor.shape)}: expected one "
                        f"that broadcasts to {tuple(chosen.shape)}, the indices of this forward"
                    )
            return torch.where(places, given, chosen)

        with self._intervening(overwritten):
            yield

    @contextmanager
    def ablate(self, codes: Iterable[int], *, level: int | None = None) -> Iterator[None]:
        """While it is open, these codes are left out wherever they were chosen: they decode to 0.

        Args:
            codes: numbers of codes.
            level: of which level; None for all, with `PursuitQuantizer` those of atoms and not of coefficients.

        Raises:
            ValueError: there is no such code, or no such level.
        """
        quantizer = self.quantizer
        wanted = torch.tensor(sorted(set(codes)), dtype=torch.int64)
        levels = quantizer.num_codebooks if quantizer.level_axis else 0
        if level is not None and not 0 <= level < levels:
            expected = f"0 to {levels - 1}" if levels else "None, since there is one code for each position"
            raise ValueError(f"level={level}: expected {expected}")
        every = 2 if isinstance(quantizer, PursuitQuantizer) else 1  # a code's number is no coefficient's
        some = slice(None, None, every) if level is None else slice(level, level + 1)
        size = max(quantizer.codebook_sizes[some]) if levels else quantizer.codebook_size
        if len(wanted) and not 0 <= int(wanted[0]) <= int(wanted[-1]) < size:
            raise ValueError(f"codes={wanted.tolist()}: expected numbers from 0 to {size - 1}")

        def ablated(chosen: Tensor) -> Tensor:
            found = torch.isin(chosen, wanted.to(chosen.device))
            if levels:
                elsewhere = torch.ones(chosen.shape[-1], dtype=torch.bool, device=chosen.device)
                elsewhere[some] = False
                found &= ~elsewhere
            return torch.where(found, -1, chosen)

        with self._intervening(ablated):
            yield

    @contextmanager
    def _intervening(self, intervention: Intervention) -> Iterator[None]:
        self._interventions.append(intervention)
        try:
            yield
        finally:
            self._interventions.remove(intervention)

    def _behind(self, layer: nn.Module, inputs: tuple[Any, ...], given: Any) -> Any:
        """The hook: quantize the output of a layer, or the first part of it."""
        first = given[0] if isinstance(given, tuple) and given else given
        if not isinstance(first, Tensor):
            raise ValueError(
                f"the layer {self.path!r} gives {type(given).__name__}: expected a tensor, or a tuple of which the "
                "first part is one; attach to a layer inside of it"
            )
        vectors = self._quantized(first)
        if not isinstance(given, tuple):
            return vectors
        named: Any = given
        return named._replace(**{named._fields[0]: vectors}) if hasattr(named, "_replace") else (vectors, *given[1:])

    def _quantized(self, x: Tensor) -> Tensor:
        self.output = self.quantizer(x)
        self.indices = self.output.indices
        if not self._interventions:
            return self.output.quantized
        for intervention in self._interventions:
            self.indices = intervention(self.indices)
        vectors = self.quantizer.decode(self.indices)
        return vectors if vectors.dtype == x.dtype else narrowed(vectors, x.dtype)


def attach(module: nn.Module, path: str, quantizer: BaseQuantizer) -> Attachment:
    """Put a quantizer behind a layer, which then passes on codes alone.

        >>> attachment = attach(network, "blocks.6", TopKQuantizer(384, 1024, 8))  # doctest: +SKIP
        >>> network(images)  # goes on with the codes, which attachment.indices (B, T, 8) names  # doctest: +SKIP
        >>> with attachment.ablate([731]):  # doctest: +SKIP
        ...     network(images)
        >>> attachment.remove()  # doctest: +SKIP

    While an intervention is open, no gradient passes through the layer to what is before it.

    Args:
        module: any network.
        path: of the layer in it, as `named_modules` lists it.
        quantizer: any; `TopKQuantizer` is the one of codebook features.

    Raises:
        ValueError: the network has no such layer, or it contains the quantizer.

    Source: Tamkin, Taufeeque, Goodman 2023 (Codebook Features, arXiv:2310.17230).
    Differs: there a network's modules are replaced and all hooks share the state of a class.
    """
    layers = dict(module.named_modules())
    if path not in layers:
        near = difflib.get_close_matches(path, layers, n=3)
        raise ValueError(
            f"path={path!r}: {type(module).__name__} has no such layer; expected a name that named_modules() lists"
            + (f", such as {', '.join(map(repr, near))}" if near else "")
        )
    quantizer.check_has_codes("attach")
    if quantizer in layers.values():
        raise ValueError(f"quantizer is a part of {type(module).__name__} itself: give one of its own")
    return Attachment(layers[path], path, quantizer)


def _broadcasts(tensor: Tensor, target: Tensor) -> bool:
    pairs = zip(reversed(tensor.shape), reversed(target.shape), strict=False)
    return tensor.ndim <= target.ndim and all(own in (1, wanted) for own, wanted in pairs)

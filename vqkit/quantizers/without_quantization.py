"""Running a model as if its quantizers were not there."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from vqkit.quantizers.base import BaseQuantizer


@contextmanager
def without_quantization(module: nn.Module) -> Iterator[None]:
    """Context in which the quantizers of a module pass vectors on without a choice, through their linear maps alone.

    It is as if every vector were a code of its own: for pre-training without quantization (Gu, Diao 2024,
    arXiv:2404.19441, sec. 3.3), and as the ceiling of what a codebook can do. Indices are -1, losses are 0 with a graph
    to every parameter, nothing is recorded, and no stage is dropped. Everything else is as outside: layouts, masks,
    gradients, and whatever a `Tokenizer` does around its quantizer.

        >>> with without_quantization(tokenizer):
        ...     reconstruction = tokenizer(images).reconstruction

    Args:
        module: a quantizer, or anything that holds some, such as a `Tokenizer`, compiled or wrapped or not.
    """
    quantizers = [part for part in module.modules() if isinstance(part, BaseQuantizer)]
    before = [quantizer.passes_through for quantizer in quantizers]
    try:
        for quantizer in quantizers:
            quantizer.passes_through = True
        yield
    finally:
        for quantizer, mode in zip(quantizers, before, strict=True):
            quantizer.passes_through = mode

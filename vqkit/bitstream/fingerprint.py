"""Which quantizer some indices belong to, in 16 bytes that outlive a change of dtype and a new version of vqkit."""

import hashlib
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from vqkit.bitstream.container import FINGERPRINT_BYTES
from vqkit.sharding import gathered, own_class

if TYPE_CHECKING:
    from vqkit.quantizers.base import BaseQuantizer

_STATISTICS = ("usage", "pending_counts", "pending_sums", "_extra_state")
"""Entries of a state that move while it learns, and say nothing of what an index means."""


def quantizer_of(module: nn.Module) -> "BaseQuantizer":
    """The quantizer of a tokenizer, or the quantizer itself.

    Raises:
        ValueError: it is neither.
    """
    found = module if hasattr(module, "level_sizes") else getattr(module, "quantizer", None)
    if not hasattr(found, "level_sizes"):
        raise ValueError(f"module is a {type(module).__name__}: expected a quantizer, or a tokenizer that has one")
    return cast("BaseQuantizer", found)


def fingerprint(module: nn.Module) -> bytes:
    """A hash of what decodes indices: two quantizers have the same one where an index means the same.

    In it are of every quantizer inside the class, and the codes and strides of its levels; of every module inside the
    arguments that change what it decodes and are in no state, as its `decoding` gives them; and its state but for
    statistics of the training, floating point numbers as little-endian float32. So it is the same after `.double()`,
    after `.bfloat16()`, which leaves quantizers as they are, and after `bake` where no codes are computed. Arguments
    that matter to training alone are not in it: a newer vqkit, with more of them, reads the files of an older one.

    A fixed grid (FSQ, LFQ, BSQ) without projections has no state of its own: of a tokenizer with such a one the weights
    of the decoder count too, rounded to bfloat16, so that a cast to that leaves them.

    Args:
        module: a quantizer, or a tokenizer with one.
    """
    quantizer = quantizer_of(module)
    digest = hashlib.sha256()
    for name, part in quantizer.named_modules():
        if hasattr(part, "level_sizes"):
            levels = tuple(part.level_sizes), tuple(part.level_strides)
            digest.update(f"{name} {own_class(type(part)).__name__} {levels}\n".encode())
        if decoding := getattr(part, "decoding", ""):
            digest.update(f"{name} {decoding}\n".encode())
    state = _meaning(quantizer)
    _add(digest, state, torch.float32)
    if quantizer is not module and not any(value.is_floating_point() for value in state.values()):
        _add(digest, _meaning(cast(nn.Module, module.decoder)), torch.bfloat16)
    return digest.digest()[:FINGERPRINT_BYTES]


def _meaning(module: nn.Module) -> dict[str, Tensor]:
    """The state that gives indices their meaning, by name."""
    return {
        name: value
        for name, value in module.state_dict().items()
        if isinstance(value, Tensor) and name.rpartition(".")[2] not in _STATISTICS
    }


def _add(digest: "hashlib._Hash", state: dict[str, Tensor], rounded: torch.dtype) -> None:
    for name, value in sorted(state.items()):
        plain = gathered(value.detach()).cpu()
        floating = plain.is_floating_point()
        numbers = plain.to(rounded).to(torch.float32) if floating else plain.to(torch.int64)
        digest.update(f"{name} {tuple(numbers.shape)}\n".encode())
        digest.update(numbers.numpy().astype("<f4" if floating else "<i8").tobytes())

"""A hash of a quantizer, which tells whether it wrote some tokens."""

import hashlib

import torch
from torch import Tensor, nn

from vqkit.sharding import gathered, own_class


def codebook_hash(quantizer: nn.Module) -> str:
    """A hash of a quantizer's state: with another one, indices may mean something else.

    A baked copy has another hash, although it decodes alike; and settings that leave no trace in the state, such as
    `normalize`, are not in it: keep the quantizer's configuration beside the tokens.

    Args:
        quantizer: any module whose state decodes the indices.

    Returns:
        The sha256, in hexadecimal, over name, dtype, shape and bytes of every tensor of the state, ordered by name.
    """
    tensors = {name: value for name, value in quantizer.state_dict().items() if isinstance(value, Tensor)}
    digest = hashlib.sha256(own_class(type(quantizer)).__name__.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(gathered(tensor.detach()).cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

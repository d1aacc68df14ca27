"""Orthonormal bases of short pieces of audio, from which a linear path of a codec starts.

With as many coefficients as a hop has samples, analysis followed by synthesis gives back the signal; with fewer, its
low frequencies.
"""

import itertools
import math

import torch
from torch import Tensor

from vqkit.precision import widest_dtype


def lapped_basis(dim: int, channels: int, hop_length: int) -> Tensor:
    """The modified discrete cosine transform with a sine window: pieces of two hops that overlap by one.

    Neighbouring windows undo each other's aliasing, so synthesis (the same basis, added with overlap) is exact, but for
    half a hop at both ends of a recording, which only one window covers. There are no edges between frames.

    Args:
        dim: coefficients per frame, lowest frequencies first.
        channels: C.
        hop_length: samples per frame.

    Returns:
        (dim, C, 2 hop_length); rows beyond C hop_length are 0.

    Source: Princen, Johnson, Bradley 1987, "Subband/transform coding using filter bank designs based on time domain
    aliasing cancellation" (https://doi.org/10.1109/ICASSP.1987.1169405).
    """
    dtype = widest_dtype(torch.get_default_device())
    times = torch.arange(2 * hop_length, dtype=dtype) + 0.5
    window = torch.sin(math.pi * times / (2 * hop_length)) * math.sqrt(2 / hop_length)
    frequencies = torch.arange(hop_length, dtype=dtype)[:, None] + 0.5
    rows = window * torch.cos(math.pi / hop_length * (times + hop_length / 2) * frequencies)
    return _lowest(dim, channels, rows)


def blocked_basis(dim: int, channels: int, hop_length: int) -> Tensor:
    """The discrete cosine transform of each hop by itself, for causal models.

    A lapped transform needs the next frame to finish a hop, which a causal decoder does not have: it would be late by
    one frame. This one is exact without delay, everywhere, at the price of edges between frames while `dim` is less
    than a hop.

    Args:
        dim: coefficients per frame, lowest frequencies first.
        channels: C.
        hop_length: samples per frame.

    Returns:
        (dim, C, hop_length); rows beyond C hop_length are 0.

    Source: Ahmed, Natarajan, Rao 1974, "Discrete cosine transform" (https://doi.org/10.1109/T-C.1974.223784).
    """
    return _lowest(dim, channels, _cosines(hop_length))


def _cosines(size: int) -> Tensor:
    dtype = widest_dtype(torch.get_default_device())
    positions = (torch.arange(size, dtype=dtype) + 0.5) * math.pi / size
    rows = torch.cos(torch.arange(size, dtype=dtype)[:, None] * positions)
    return rows / rows.norm(dim=1, keepdim=True)


def _lowest(dim: int, channels: int, rows: Tensor) -> Tensor:
    """The first `dim` products of a basis over channels (for stereo mid and side) and one over time.

    The variance is taken to fall with the square of the frequency, and fourfold from one channel to the next.
    """
    mixes = _cosines(channels)
    axes = itertools.product(range(channels), range(len(rows)))
    order = sorted(axes, key=lambda axis: ((axis[1] + 0.5) * 2 ** axis[0], axis))[:dim]
    basis = torch.zeros(dim, channels, rows.shape[1])
    for index, (channel, frequency) in enumerate(order):
        basis[index] = mixes[channel][:, None] * rows[frequency]
    return basis

"""The order of training samples: what a pass takes, which is a pure function of the seed and the pass."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy

ORDER_STREAM = 2**64 - 1
"""The Philox counter word of the first part's order, where samples have their index; further parts count down from it,
and no sample reaches these."""


@dataclass(frozen=True)
class Part:
    """Samples of a data set that follow each other and have a share of the stream.

    Attributes:
        samples: How many there are, at least 1.
        drawn: How many of them a pass takes, at least 1: all, fewer, or the same ones several times.
    """

    samples: int
    drawn: int


def sample_generator(seed: int, epoch: int, index: int) -> numpy.random.Generator:
    """A generator that belongs to one sample of one pass: equal arguments give equal numbers on every machine.

    Args:
        seed: Seed of the run, 0 <= seed < 2**63.
        epoch: Number of the pass over the data, from 0.
        index: Number of the sample, from 0.
    """
    # Draws advance the lowest counter word; the pass and the sample sit in the highest two, so no two streams overlap.
    counter = numpy.array([0, 0, epoch, index], numpy.uint64)
    return numpy.random.Generator(numpy.random.Philox(key=seed, counter=counter))


def shuffled(samples: int, *, seed: int, epoch: int, part: int = 0) -> numpy.ndarray:
    """The order of the samples of a part in one pass over it.

    Returns:
        (samples,) int64, a permutation.
    """
    return sample_generator(seed, epoch, ORDER_STREAM - part).permutation(samples)


def shares(weights: Sequence[float], total: int) -> list[int]:
    """Divides `total` samples by weights, to the nearest whole ones: those with the largest remainders get one more."""
    exact = numpy.array(weights, numpy.float64) / numpy.sum(weights, dtype=numpy.float64) * total
    counts = numpy.floor(exact).astype(int)
    largest_first = numpy.argsort(counts - exact, kind="stable")
    counts[largest_first[: total - counts.sum()]] += 1
    return counts.tolist()


def pass_keys(parts: Sequence[Part], *, seed: int, epoch: int) -> numpy.ndarray:
    """What one pass takes of a data set, in order.

    Each part is gone through by itself, pass after pass, as if there were no other: pass `epoch` of the mixture takes
    the next `drawn` of its samples. Of m samples, the k-th comes at (k + u) / m of the pass with a u of its own in
    [0, 1). So the shares hold anywhere in the pass, not only at its end: of the first i of N samples, this part has
    i m / N, to within 1 + m P / N where there are P parts. With one part that is its permutation.

    Args:
        parts: Of the data set, from its first sample on.
        seed: Seed of the order.
        epoch: Number of the pass, from 0.

    Returns:
        (sum of drawn, 2) int64: the part's own pass, and the sample in the whole data set. No row comes twice.
    """
    keys, times, first = [], [], 0
    for number, part in enumerate(parts):
        places = numpy.arange(epoch * part.drawn, (epoch + 1) * part.drawn)
        passes, within = places // part.samples, places % part.samples
        orders = [shuffled(part.samples, seed=seed, epoch=own, part=number) for own in range(passes[0], passes[-1] + 1)]
        keys.append(numpy.stack([passes, first + numpy.stack(orders)[passes - passes[0], within]], axis=1))
        if len(parts) > 1:
            jitter = sample_generator(seed, epoch, ORDER_STREAM - len(parts) - number).random(part.drawn)
            times.append((numpy.arange(part.drawn) + jitter) / part.drawn)
        first += part.samples
    joined = numpy.concatenate(keys)
    return joined[numpy.argsort(numpy.concatenate(times), kind="stable")] if times else joined

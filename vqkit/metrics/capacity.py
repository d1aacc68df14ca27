"""How much of its bits a quantizer makes use of, on data for which the best possible answer is known: white noise.

No code of R bits for each of the independent N(0, 1) numbers of a vector has a mean squared error below D(R) = 2^(-2R)
(Shannon 1959; Cover, Thomas 2006, theorem 10.3.2). So the error of a quantizer on such vectors, with no data set, no
encoder and no decoder, says how many of its bits do something: R_eff = -1/2 log2(error). What falls below D(R) is a
fault of the code that counts the bits or the error, and what lies far above is a collapse.

Source: the distortion of Gaussian data as the capacity of a representation, Panferov et al. 2025, "Unified Scaling Laws
for Compressed Representations" (arXiv:2506.01863). Its law from this distortion to the loss of a language model, with
fitted constants, is not here. Latents of a trained encoder are neither white nor Gaussian: publish the distortion on
them beside this figure, not this one in its place.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vqkit.kernels import segment_stats
from vqkit.metrics.usage import CodebookUsage, countable
from vqkit.parts.codebooks import Codebook
from vqkit.precision import widened
from vqkit.quantizers.base import BaseQuantizer
from vqkit.quantizers.output import Quantized
from vqkit.quantizers.quantizer import Quantizer
from vqkit.runtime import autocast_disabled

FEWEST_SAMPLES = 2**10
ENOUGH_TOKENS = 4
"""Tokens for each code below which no entropy is told: the corrected estimate is then a tenth of a bit too low."""
CHUNKS = 16
"""Parts of the samples, from whose spread the standard error is read."""
COARSE, FINE = 2**12, 2**15
"""Numbers by which scales are compared: powers of four from 2^-20 to 2^20, and those between; of 64 vectors at least,
whose offset would else explain them."""
DECAY = 0.8
"""Of the statistics of earlier rounds in `fit_gaussian`: centroids are means over some five rounds."""

Encoder = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class GaussianCapacity:
    """What a quantizer makes of white Gaussian vectors.

    Attributes:
        bits: nominal bits a dimension: log2 of the codes of each level, times its indices, over the numbers of a
            sample. Levels are the grids of a file (`to_grids`), which of a mixture are its weights, too.
        entropy_bits: the same with the entropy of each level's indices, which an ideal coder of single indices takes
            (Miller-Madow: plug-in plus (used codes - 1) / (2 tokens ln 2)); None where a level has fewer than four
            tokens for each code, or more codes than can be counted.
        distortion: mean squared error a dimension over the variance, in [0, 1], after the best scale in front, gain and
            offset behind; 1 where the indices say nothing.
        standard_error: of the distortion, from the spread of 16 parts of the samples.
        scale: by which unit variance is multiplied in front of the quantizer.
    """

    bits: float
    entropy_bits: float | None
    distortion: float
    standard_error: float
    scale: float

    @property
    def effective_bits(self) -> float:
        """Bits a dimension that an ideal code takes for this distortion, -1/2 log2 of it."""
        return -math.log2(self.distortion) / 2 if self.distortion else math.inf

    @property
    def efficiency(self) -> float:
        """Effective over nominal bits, in [0, 1]; NaN for a single code."""
        return self.effective_bits / self.bits if self.bits else math.nan

    @property
    def gap_db(self) -> float:
        """The distortion over D(R) = 2^(-2R) at the nominal bits, in dB, at least 0."""
        return _decibels(self.distortion, self.bits)

    @property
    def entropy_gap_db(self) -> float | None:
        """The same at the entropy: what is left when the indices are coded."""
        return None if self.entropy_bits is None else _decibels(self.distortion, self.entropy_bits)


@torch.no_grad()
def gaussian_capacity(
    quantizer: BaseQuantizer,
    *,
    encoder: Encoder | None = None,
    positions: Sequence[int] = (),
    samples: int = 2**17,
    seed: int = 0,
) -> GaussianCapacity:
    """Measure a quantizer as it is, on white Gaussian vectors: x -> gain * decode(encode(scale * x)) + offset.

    Scale (one number) is chosen on samples of its own, gain (one number) and offset (D) are those of the regression: a
    decoder learns them, and they cost no bits. So the result does not depend on the scale of a codebook, which
    `fit_gaussian` fits first where its structure is meant, and not its codes. Only indices reach the reconstruction:
    no state changes, and nothing of training acts.

    Args:
        quantizer: any that has codes. Linear maps of its own (`codebook_dim`, `ProjectedQuantizer`) are taken as they
            are, so random ones before training, which lose a share of the bits.
        encoder: what stands in front of it, (B, *positions, D) to the same; None for nothing. A bound that encoders
            learn to fill is not part of the grid behind it: `encoder=fsq.unbounded` for `FSQ`.
        positions: the shape of a sample between batch and channels: (4, 4) for quantizers of such maps. () is for
            single vectors.
        samples: how many vectors, at least 1,024.
        seed: of them; another one than those of the codes and of `fit_gaussian`.

    Raises:
        ValueError: the quantizer has no codes, there are too few samples, or the distortion lies below the bound by
            more than four standard errors. Then bits are counted wrongly, or codes were fitted to these very samples.
    """
    quantizer.check_has_codes("gaussian_capacity")
    if samples < FEWEST_SAMPLES:
        raise ValueError(f"samples={samples}: expected at least {FEWEST_SAMPLES} vectors, better 100,000")

    def moments(x: Tensor, exponent: float, usages: Sequence[CodebookUsage] = ()) -> Moments:
        z = x * 2**exponent
        indices = quantizer.encode((z if encoder is None else encoder(z)).movedim(-1, quantizer.channel_dim))
        for usage, grid in zip(usages, quantizer.to_grids(indices), strict=False):  # none, or one for each grid
            usage.update(grid)
        return Moments.of(x, quantizer.decode(indices).movedim(quantizer.channel_dim, -1))

    def distortion(x: Tensor, exponent: float) -> float:
        return moments(x, exponent).distortion

    coarse, fine = (
        next(_white(quantizer, positions, max(64, math.ceil(numbers / quantizer.dim)), 1, seed + 2**32))
        for numbers in (COARSE, FINE)
    )
    powers = [float(power) for power in sorted(range(-20, 21, 2), key=abs)]
    best = min(powers, key=lambda exponent: distortion(coarse, exponent))
    for step in (1 / 2, 1 / 8, 1 / 32):
        nearby = [best + step * number for number in sorted(range(-4, 5), key=abs)]
        best = min(nearby, key=lambda exponent: distortion(fine, exponent))

    sizes = quantizer.grid_sizes if countable(quantizer.grid_sizes) else ()
    usages = [CodebookUsage(size).to(quantizer.latent_spread.device) for size in sizes]
    parts = [moments(x, best, usages) for x in _white(quantizer, positions, samples, CHUNKS, seed)]
    spread = torch.tensor([part.distortion for part in parts], dtype=torch.float64).std()
    result = GaussianCapacity(
        bits=_nominal_bits(quantizer, coarse),
        entropy_bits=_entropy_bits(usages, sum(part.numbers for part in parts)) if usages else None,
        distortion=sum(parts[1:], start=parts[0]).distortion,
        standard_error=float(spread) / math.sqrt(CHUNKS),
        scale=2.0**best,
    )
    if result.distortion + 4 * result.standard_error < 4**-result.bits:
        raise ValueError(
            f"{type(quantizer).__name__} has a distortion of {result.distortion:.4g} at {result.bits:.4g} bits a "
            f"dimension: expected at least 2^(-2R) = {4**-result.bits:.4g}, below which no code can go. Its "
            f"grid_sizes {quantizer.grid_sizes} count too few codes, or its codes were fitted to the samples of "
            f"seed={seed}"
        )
    return result


@torch.no_grad()
def fit_gaussian(
    quantizer: BaseQuantizer,
    *,
    positions: Sequence[int] = (),
    rounds: int = 100,
    samples: int | None = None,
    seed: int = 1,
) -> None:
    """Fit the codes of a quantizer to white Gaussian vectors, to measure its structure with `gaussian_capacity`.

    It starts from `initialize`. Then come Lloyd's rounds, each on samples that it has not seen, so that nothing is
    fitted to few: each code that training moves becomes the mean of the vectors that chose it, over the last rounds.
    Whatever the quantizer is made of, each codebook follows what it was given: residual stages what the stages before
    them leave over, groups their channels. Codes that nothing trains, codes that are computed, and those that are
    added up (`TopKQuantizer`, `PursuitQuantizer`) stay as `initialize` made them. There is no gradient: what a method
    reaches by its own training is another question. Lloyd's rounds end in a local optimum, for few codes a percent or
    two above the best: take the best of some seeds.

    Args:
        quantizer: is changed in place.
        positions: see `gaussian_capacity`.
        rounds: at least 0.
        samples: vectors of each round; None means 256 for each code, and at least 65,536.
        seed: of the samples; another one than that of the measurement.

    Raises:
        ValueError: the quantizer has no codes, or a number is too small.

    Source: Lloyd 1982, "Least squares quantization in PCM" (https://doi.org/10.1109/TIT.1982.1056489).
    """
    quantizer.check_has_codes("fit_gaussian")
    largest = max((book.codebook_size for book in quantizer.modules() if isinstance(book, Codebook)), default=1)
    samples = max(2**16, 256 * largest) if samples is None else samples
    if samples < 1 or rounds < 0:
        raise ValueError(f"samples={samples}, rounds={rounds}: expected at least 1 sample and 0 rounds")
    draws = _white(quantizer, positions, samples * (rounds + 1), rounds + 1, seed)
    quantizer.initialize([next(draws).movedim(-1, quantizer.channel_dim)], samples=samples, seed=seed)
    gathered: dict[Codebook, Tensor] = {}
    for x in draws:
        for book in gathered:
            gathered[book] *= DECAY
        for part in x.split(max(1, 2**16 // max(1, math.prod(positions)))):
            latents, valid, _ = quantizer.open(part.movedim(-1, quantizer.channel_dim))
            with autocast_disabled(latents.device):
                _gather(quantizer.quantize(latents, valid), gathered)
        for book, packed in gathered.items():
            counts, sums = packed[:, :1], packed[:, 1:]
            means = torch.where(counts > 0, sums / counts.clamp(min=torch.finfo(counts.dtype).tiny), widened(book()))
            book.write(means.to(book.usage.dtype))


def _gather(quantized: Quantized, gathered: dict[Codebook, Tensor]) -> None:
    """Add to the counts and sums (K, 1 + D) of each codebook that training moves what chose its codes."""
    for leaf in quantized.leaves():
        source, selection = leaf.source, leaf.selection
        if not isinstance(source, Quantizer) or selection is None:
            continue
        book = source.codebook
        if book.trained_by != "nothing" and book.rows == "writable":
            vectors = widened(selection.z)
            found = segment_stats(vectors, selection.indices, book.codebook_size, dtype=vectors.dtype)
            gathered[book] = gathered.get(book, 0) + torch.cat([found.counts[:, None], found.sums], dim=1)


@dataclass(frozen=True)
class Moments:
    """Sums over vectors, of which the error after the best gain and offset follows.

    Attributes:
        numbers: N D, how many numbers were quantized.
        vectors: N.
        x, q: (D,) sums of the vectors and of what they became.
        xx, xq, qq: () sums of products, over all dimensions.
    """

    numbers: int
    vectors: int
    x: Tensor
    q: Tensor
    xx: Tensor
    xq: Tensor
    qq: Tensor

    @classmethod
    def of(cls, vectors: Tensor, quantized: Tensor) -> "Moments":
        """Those of (..., D) vectors and what they became."""
        x, q = (widened(rows).reshape(-1, rows.shape[-1]) for rows in (vectors, quantized))
        return cls(x.numel(), len(x), x.sum(0), q.sum(0), x.square().sum(), (x * q).sum(), q.square().sum())

    def __add__(self, other: "Moments") -> "Moments":
        pairs = {name: value + getattr(other, name) for name, value in vars(self).items()}
        return replace(self, **pairs)

    @property
    def distortion(self) -> float:
        """The least |x - g q - c|^2 / |x - mean|^2 over gain g and offset c: what a regression leaves, 1 - r^2."""
        xx, xq, qq = (
            product - (first * second).sum() / self.vectors
            for product, first, second in (
                (self.xx, self.x, self.x),
                (self.xq, self.x, self.q),
                (self.qq, self.q, self.q),
            )
        )
        # A sum of squares that is all rounding is no variance: the indices were equal.
        told = qq > 1e-12 * self.qq
        return max(0.0, float(1 - xq.square() / (xx * qq))) if told else 1.0


def _white(
    quantizer: BaseQuantizer, positions: Sequence[int], vectors: int, chunks: int, seed: int
) -> Iterator[Tensor]:
    """Chunks of N(0, 1), (B, *positions, D), of at least so many vectors in all."""
    # Not the plain seed: torch.randn with the seed of a random codebook would draw its codes.
    generator = torch.Generator().manual_seed((seed + 1) * 0x9E3779B97F4A7C15 % 2**63)
    batch = math.ceil(vectors / chunks / max(1, math.prod(positions)))
    for _ in range(chunks):
        shape = (batch, *positions, quantizer.dim)
        yield torch.randn(shape, generator=generator, dtype=quantizer.dtype).to(quantizer.latent_spread.device)


def _nominal_bits(quantizer: BaseQuantizer, x: Tensor) -> float:
    """Bits of all indices of `x` (B, *positions, D) over its numbers."""
    grids = quantizer.to_grids(quantizer.encode(x.movedim(-1, quantizer.channel_dim)))
    bits = sum(grid.numel() * math.log2(size) for grid, size in zip(grids, quantizer.grid_sizes, strict=True))
    return bits / x.numel()


def _entropy_bits(usages: Sequence[CodebookUsage], numbers: int) -> float | None:
    """The entropy of all counted tokens, each grid by itself, over `numbers`; None where they are too few to tell."""
    total = 0.0
    for usage in usages:
        counts, (size,) = usage.counts[0].cpu(), usage.codebook_sizes
        tokens, codes = int(counts.sum()), int((counts > 0).sum())
        if not tokens:
            continue  # a grid that no sample needs
        if tokens < ENOUGH_TOKENS * size:
            return None
        shares = counts.double() / tokens
        plug_in = -float(torch.special.xlogy(shares, shares).sum()) / math.log(2)
        total += tokens * min(math.log2(size), plug_in + (codes - 1) / (2 * tokens * math.log(2)))
    return total / numbers


def _decibels(distortion: float, bits: float) -> float:
    return 10 * math.log10(distortion * 4**bits) if distortion else -math.inf

"""What the first levels of a quantizer alone pass on, beside what all of them do."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from torch import Tensor

from vqkit.quantizers.base import BaseQuantizer


@contextmanager
def first_levels(quantizer: BaseQuantizer, levels: Collection[int]) -> Iterator[dict[int, Tensor]]:
    """Context in which a forward of a quantizer also gives the vectors of its first levels, with their gradient.

    `decode(indices[..., :n])` has the same vectors, but leads no gradient to the encoder. An objective that teaches a
    semantic first codebook needs one:

        >>> with first_levels(tokenizer.quantizer, [1]) as vectors:
        ...     output = tokenizer(waves)
        >>> loss = output.quantizer.loss + distance(vectors[1], features)

    Where an estimator stands over the sum of residual stages, the gradient is that which it gives the sum: the straight
    one to the latents, for `StraightThrough`. Everywhere else each level passes it on through its own estimator and the
    linear maps around it. They are quantized also where a `SplitQuantizer` hands unquantized vectors to the decoder. Of
    several forwards the last one counts.

    Args:
        quantizer: whose own forward is called inside, such as that of a `Tokenizer`; not a member of it.
        levels: how many of the first levels, each number from 1 to `num_codebooks`.

    Yields:
        for each of `levels` the vectors, in the layout of the forward and in the dtype of the quantizer; empty before.

    Raises:
        ValueError: the quantizer has not as many levels, or its vectors are no sum of what its levels add.
    """
    for count in levels:
        quantizer.check_first_levels(count)
    before, noted = quantizer.noted_levels, dict[int, Tensor]()
    quantizer.noted_levels = (tuple(levels), noted) if levels else before
    try:
        yield noted
    finally:
        quantizer.noted_levels = before

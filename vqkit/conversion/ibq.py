"""IBQ as SEED-Voken publishes it: averaged weights beside those of the last step."""

from dataclasses import replace

from torch import Tensor

from vqkit.conversion.source import Source
from vqkit.conversion.taming import TamingVQGAN
from vqkit.conversion.vqgan import TABLE
from vqkit.quantizers.base import BaseQuantizer
from vqkit.quantizers.quantizer import Quantizer

AVERAGES = "model_ema."
AVERAGES_OF_LOSS = f"{AVERAGES}loss"
COUNTERS = (f"{AVERAGES}decay", f"{AVERAGES}num_updates")


class SeedVokenIBQ(TamingVQGAN):
    """IBQ of SEED-Voken: the key tree of taming-transformers, and codes that are chosen by dot product.

    The averaged weights are taken, which have names without dots. A file without averages is not recognized: give
    `family=SeedVokenIBQ()`.

    Source: Shi et al. 2024 (https://arxiv.org/abs/2412.02692) and its released code.
    """

    name = "IBQ of SEED-Voken"
    telltale = COUNTERS[0]
    license = "apache-2.0"
    published_blocks = 4

    def weights(self, source: Source) -> Source:
        """See `Family`.

        Raises:
            ValueError: there are averages, and not of all weights, or of others.
        """
        averages = {name for name in source.state if name.startswith(AVERAGES)} - {*COUNTERS}
        if not averages:
            return source
        state: dict[str, Tensor] = {}
        for name in source.state:
            if name.startswith((AVERAGES, *self.unused)):
                continue
            average = AVERAGES + name.replace(".", "")
            if average not in averages:
                raise ValueError(f"entry {average!r} is missing: expected the average of {name!r}")
            state[name] = source.state[average]
            averages.remove(average)
        others = sorted(name for name in averages if not name.startswith(AVERAGES_OF_LOSS))
        if others:
            raise ValueError(f"entry {others[0]!r} is unexpected: there is no entry that it is the average of")
        return replace(source, state=state)

    def build_quantizer(self, source: Source) -> BaseQuantizer:
        """See `VQGANFamily`."""
        size, dim = source.shape(TABLE, 2)
        return Quantizer("ibq", dim=dim, codebook_size=size, channel_dim=1)

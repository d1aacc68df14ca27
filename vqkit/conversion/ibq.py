"""IBQ as SEED-Voken publishes it: averaged weights beside those of the last step."""

from vqkit.conversion.averages import COUNTERS, averaged
from vqkit.conversion.source import Source
from vqkit.conversion.taming import TamingVQGAN
from vqkit.conversion.vqgan import TABLE
from vqkit.quantizers.base import BaseQuantizer
from vqkit.quantizers.quantizer import Quantizer


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
        """See `Family`."""
        return averaged(source, unused=self.unused)

    def build_quantizer(self, source: Source) -> BaseQuantizer:
        """See `VQGANFamily`."""
        size, dim = source.shape(TABLE, 2)
        return Quantizer("ibq", dim=dim, codebook_size=size, channel_dim=1)

"""Open-MAGVIT2 as SEED-Voken publishes it: one bit for each channel of the latents, and no codebook."""

from vqkit.conversion.averages import averaged
from vqkit.conversion.magvit2 import MAGVIT2Family
from vqkit.conversion.source import Source
from vqkit.quantizers.base import BaseQuantizer
from vqkit.quantizers.lfq import LFQ

PUBLISHED_BITS = (14, 18)


class OpenMAGVIT2(MAGVIT2Family):
    """Open-MAGVIT2's tokenizers of images: the sign of each channel, the first of which is the lowest bit of an index.

    The averaged weights are taken, which have names without dots. WeTok has the same names for groups of bits, each
    with an index of its own, and nothing in a file says so: files with other bits than the authors' are not recognized.

    Source: Luo et al. 2024 (https://arxiv.org/abs/2409.04410) and its released code.
    """

    name = "Open-MAGVIT2 of SEED-Voken"
    telltale = "decoder.adaptive.0.gamma.weight"
    license = "apache-2.0"

    @classmethod
    def recognizes(cls, source: Source) -> bool:
        """See `Family`."""
        if not super().recognizes(source):
            return False
        bits = source.shape(cls.telltale, 2)[1]
        if bits not in PUBLISHED_BITS:
            raise ValueError(
                f"{source.file} has names that several families share, and latents of {bits} channels: those of "
                f"{cls.name} have {' or '.join(map(str, PUBLISHED_BITS))}. If each channel is a bit of one index, say "
                "so by family=OpenMAGVIT2() of vqkit.convert"
            )
        return True

    def weights(self, source: Source) -> Source:
        """See `Family`."""
        return averaged(source, unused=self.unused)

    def build_quantizer(self, source: Source) -> BaseQuantizer:
        """See `MAGVIT2Family`."""
        return LFQ(source.shape("encoder.conv_out.weight", 4)[0], channel_dim=1)

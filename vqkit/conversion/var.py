"""The multi-scale autoencoder of VAR."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import count, takewhile

from vqkit.conversion.family import Entry, named_entries
from vqkit.conversion.source import Source
from vqkit.conversion.taming import DECODER, ENCODER
from vqkit.conversion.vqgan import TABLE, AttentionNames, VQGANFamily
from vqkit.quantizers.base import BaseQuantizer
from vqkit.quantizers.multiscale import MultiScaleQuantizer
from vqkit.quantizers.quantizer import Quantizer

SCALES_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
PHI = "quantize.quant_resi.qresi_ls"
USAGE = "quantize.ema_vocab_hit_SV"


class VARAutoencoder(VQGANFamily):
    """Autoencoder of VAR; one codebook for all scales, and convolutions phi that the scales share.

    Args:
        scales: sizes of the grids, coarse first, of which the weights say the number alone: those for images of 256
            pixels. At 512 pixels VAR has (1, 2, 3, 4, 6, 9, 13, 18, 24, 32).

    Source: Tian et al. 2024 (https://arxiv.org/abs/2404.02905) and its released code.
    """

    name = "autoencoder of VAR"
    telltale = f"{PHI}.0.weight"
    unused = (USAGE,)
    license = "mit"
    encoder = ENCODER
    decoder = DECODER
    attentions = (AttentionNames(projections=("qkv",)),)

    def __init__(self, scales: Sequence[int] = SCALES_256) -> None:
        self.scales = list(scales)

    def build_quantizer(self, source: Source) -> BaseQuantizer:
        """See `VQGANFamily`."""
        size, dim = source.shape(TABLE, 2)
        if USAGE in source and (found := source.shape(USAGE, 2)[0]) != len(self.scales):
            raise ValueError(
                f"{USAGE!r} counts {found} scales: expected {len(self.scales)}, those of scales={self.scales}"
            )
        phis = sum(1 for _ in takewhile(lambda n: f"{PHI}.{n}.weight" in source, count()))
        stage = partial(Quantizer, "vq", dim=dim, codebook_size=size)
        return MultiScaleQuantizer(stage, self.scales, num_phis=phis, channel_dim=1)

    def quantizer_entries(self, source: Source, quantizer: BaseQuantizer) -> Iterator[Entry]:
        """See `VQGANFamily`."""
        assert isinstance(quantizer, MultiScaleQuantizer) and quantizer.phi is not None
        yield Entry("quantizer.stages.0.codebook.vectors", {TABLE: (quantizer.codebook_size, quantizer.dim)})
        yield from named_entries("quantizer.phi.convolutions", quantizer.phi.convolutions, PHI)

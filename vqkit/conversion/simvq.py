"""SimVQ's tokenizers of images: a frozen table, and the linear map that makes codes of it."""

from collections.abc import Iterator

from vqkit.conversion.averages import averaged
from vqkit.conversion.family import Entry, named_entries
from vqkit.conversion.magvit2 import MAGVIT2Family
from vqkit.conversion.source import Source
from vqkit.conversion.vqgan import TABLE
from vqkit.quantizers.base import BaseQuantizer
from vqkit.quantizers.quantizer import Quantizer

PROJECTOR, MAP = "quantizer.codebook.projector", "quantize.embedding_proj"


class SimVQImage(MAGVIT2Family):
    """SimVQ's tokenizers of images; codes are the rows of the table behind the map.

    The averaged weights are taken, which have names without dots; of the table, which is not trained, there is none.

    Differs: decoding reads the codes behind the map, as encoding does; the released look-up by index reads the table.

    Source: Zhu et al. 2024 (https://arxiv.org/abs/2411.02038) and its released code.
    """

    name = "SimVQ for images"
    telltale = f"{MAP}.weight"
    license = "mit"

    def weights(self, source: Source) -> Source:
        """See `Family`."""
        return averaged(source, unused=self.unused, frozen=(TABLE,))

    def build_quantizer(self, source: Source) -> BaseQuantizer:
        """See `MAGVIT2Family`."""
        size, dim = source.shape(TABLE, 2)
        return Quantizer("simvq", dim=dim, codebook_size=size, channel_dim=1)

    def quantizer_entries(self, source: Source, quantizer: BaseQuantizer) -> Iterator[Entry]:
        """See `MAGVIT2Family`."""
        yield Entry("quantizer.codebook.base", {TABLE: (quantizer.codebook_size, quantizer.dim)})
        yield from named_entries(PROJECTOR, quantizer.get_submodule("codebook.projector"), MAP)

"""vqkit: vector quantization for PyTorch.

    >>> from vqkit import Quantizer
    >>> quantizer = Quantizer("simvq", dim=256, codebook_size=65536)

Everything public is named here; nothing else is.
"""

from vqkit.base import BaseQuantizer as BaseQuantizer
from vqkit.base import Noise as Noise
from vqkit.base import QuantizerOutput as QuantizerOutput
from vqkit.base import Selection as Selection
from vqkit.codebooks import Codebook as Codebook
from vqkit.codebooks import EMACodebook as EMACodebook
from vqkit.codebooks import NormalCodebook as NormalCodebook
from vqkit.codebooks import ProjectedCodebook as ProjectedCodebook
from vqkit.composites.residual import ResidualQuantizer as ResidualQuantizer
from vqkit.estimators import Estimator as Estimator
from vqkit.estimators import IndexBackpropagation as IndexBackpropagation
from vqkit.estimators import RotationTrick as RotationTrick
from vqkit.estimators import StraightThrough as StraightThrough
from vqkit.lookup_free.fsq import FSQ as FSQ
from vqkit.losses import CodebookLoss as CodebookLoss
from vqkit.losses import Commitment as Commitment
from vqkit.losses import DoubleQuantization as DoubleQuantization
from vqkit.losses import Entropy as Entropy
from vqkit.losses import Loss as Loss
from vqkit.maintenance import Maintenance as Maintenance
from vqkit.maintenance import RandomRestart as RandomRestart
from vqkit.metrics import CodebookUsage as CodebookUsage
from vqkit.parts import IncompatibleParts as IncompatibleParts
from vqkit.parts import Parts as Parts
from vqkit.pointwise import VectorQuantizer as VectorQuantizer
from vqkit.quantizer import Quantizer as Quantizer
from vqkit.search import Search as Search
from vqkit.tokenizer import Tokenizer as Tokenizer
from vqkit.tokenizer import TokenizerOutput as TokenizerOutput
from vqkit.version import __version__ as __version__

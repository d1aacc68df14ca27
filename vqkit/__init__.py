"""vqkit: vector quantization for PyTorch.

    >>> from vqkit import Quantizer
    >>> quantizer = Quantizer("simvq", dim=256, codebook_size=65536)

Everything public is named here; nothing else is.
"""

from vqkit.audio_tokenizer import AudioTokenizer as AudioTokenizer
from vqkit.baking import bake as bake
from vqkit.base import BaseQuantizer as BaseQuantizer
from vqkit.base import Noise as Noise
from vqkit.base import QuantizerOutput as QuantizerOutput
from vqkit.base import Selection as Selection
from vqkit.codebooks import Codebook as Codebook
from vqkit.codebooks import EMACodebook as EMACodebook
from vqkit.codebooks import NormalCodebook as NormalCodebook
from vqkit.codebooks import ProjectedCodebook as ProjectedCodebook
from vqkit.codebooks import TableCodebook as TableCodebook
from vqkit.composites.cross_scale import CrossScaleQuantizer as CrossScaleQuantizer
from vqkit.composites.disentanglement import Disentanglement as Disentanglement
from vqkit.composites.disentanglement import GroupLoss as GroupLoss
from vqkit.composites.disentanglement import PublishedDisentanglement as PublishedDisentanglement
from vqkit.composites.grouped import GroupedQuantizer as GroupedQuantizer
from vqkit.composites.residual import ResidualQuantizer as ResidualQuantizer
from vqkit.cross_scale import CrossScaleTokenizer as CrossScaleTokenizer
from vqkit.estimators import Estimator as Estimator
from vqkit.estimators import IndexBackpropagation as IndexBackpropagation
from vqkit.estimators import Reflection as Reflection
from vqkit.estimators import ReinMax as ReinMax
from vqkit.estimators import RotationTrick as RotationTrick
from vqkit.estimators import StraightThrough as StraightThrough
from vqkit.exporting import Decode as Decode
from vqkit.exporting import Encode as Encode
from vqkit.exporting import export_onnx as export_onnx
from vqkit.lookup_free.bits import BitEntropy as BitEntropy
from vqkit.lookup_free.bsq import BSQ as BSQ
from vqkit.lookup_free.fsq import FSQ as FSQ
from vqkit.lookup_free.fsq import CenteredFSQ as CenteredFSQ
from vqkit.lookup_free.lfq import LFQ as LFQ
from vqkit.losses import CodebookLoss as CodebookLoss
from vqkit.losses import Commitment as Commitment
from vqkit.losses import DistributionMatching as DistributionMatching
from vqkit.losses import DoubleQuantization as DoubleQuantization
from vqkit.losses import Entropy as Entropy
from vqkit.losses import Loss as Loss
from vqkit.losses import Orthogonality as Orthogonality
from vqkit.maintenance import CodeSplit as CodeSplit
from vqkit.maintenance import Maintenance as Maintenance
from vqkit.maintenance import RandomRestart as RandomRestart
from vqkit.methods.anchors import Anchor as Anchor
from vqkit.methods.anchors import ClosestAnchor as ClosestAnchor
from vqkit.methods.anchors import ProbabilisticAnchor as ProbabilisticAnchor
from vqkit.methods.anchors import RandomAnchor as RandomAnchor
from vqkit.methods.cascaded import CascadedCodebook as CascadedCodebook
from vqkit.methods.cascaded import ReadThrough as ReadThrough
from vqkit.methods.cvq import ClusterReinit as ClusterReinit
from vqkit.methods.cvq import Contrastive as Contrastive
from vqkit.methods.cvq import UnusedCodebook as UnusedCodebook
from vqkit.methods.diveq import DiVeQ as DiVeQ
from vqkit.methods.factorized import RawStraightThrough as RawStraightThrough
from vqkit.methods.fvq import BridgedCodebook as BridgedCodebook
from vqkit.methods.gumbel import GumbelSearch as GumbelSearch
from vqkit.methods.gumbel import GumbelSoftmax as GumbelSoftmax
from vqkit.methods.gumbel import RelaxedGumbelSoftmax as RelaxedGumbelSoftmax
from vqkit.methods.gumbel import UniformPrior as UniformPrior
from vqkit.methods.nsvq import NSVQ as NSVQ
from vqkit.methods.seeded import SeededCodebook as SeededCodebook
from vqkit.methods.vqgan_lc import FeatureCodebook as FeatureCodebook
from vqkit.metrics import CodebookUsage as CodebookUsage
from vqkit.parts import IncompatibleParts as IncompatibleParts
from vqkit.parts import Parts as Parts
from vqkit.pointwise import VectorQuantizer as VectorQuantizer
from vqkit.quantizer import Quantizer as Quantizer
from vqkit.search import Search as Search
from vqkit.tokenizer import Tokenizer as Tokenizer
from vqkit.tokenizer import TokenizerOutput as TokenizerOutput
from vqkit.version import __version__ as __version__

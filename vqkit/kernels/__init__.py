"""The arithmetic under the layers: search, statistics and soft assignment, each exact and without the N x K matrix.

`naive` has the plain form of each function in about ten lines.
"""

from vqkit.kernels.bit_patterns import pattern_sums
from vqkit.kernels.engines import Impl
from vqkit.kernels.entropy import AssignmentEntropy, assignment_entropy, entropy
from vqkit.kernels.gumbel import gumbel_nearest, gumbel_softmax
from vqkit.kernels.index_backpropagation import index_backpropagation
from vqkit.kernels.nearest import Metric, Nearest, SearchPath, nearest, search_path
from vqkit.kernels.reinmax import reinmax
from vqkit.kernels.residual import ResidualNearest, residual_nearest
from vqkit.kernels.sinkhorn import balancing_prices
from vqkit.kernels.statistics import SegmentStats, segment_stats
from vqkit.kernels.weighted import weighted_nearest

__all__ = [
    "AssignmentEntropy",
    "Impl",
    "Metric",
    "Nearest",
    "ResidualNearest",
    "SearchPath",
    "SegmentStats",
    "assignment_entropy",
    "balancing_prices",
    "entropy",
    "gumbel_nearest",
    "gumbel_softmax",
    "index_backpropagation",
    "nearest",
    "pattern_sums",
    "reinmax",
    "residual_nearest",
    "search_path",
    "segment_stats",
    "weighted_nearest",
]

"""The arithmetic under the layers: search, statistics and soft assignment, each exact and without the N x K matrix."""

from vqkit.kernels.entropy import AssignmentEntropy, assignment_entropy, entropy
from vqkit.kernels.nearest import Metric, Nearest, SearchPath, nearest, search_path
from vqkit.kernels.residual import ResidualNearest, residual_nearest
from vqkit.kernels.soft import index_backpropagation, log_sum_exp
from vqkit.kernels.statistics import SegmentStats, segment_stats

__all__ = [
    "AssignmentEntropy",
    "Metric",
    "Nearest",
    "ResidualNearest",
    "SearchPath",
    "SegmentStats",
    "assignment_entropy",
    "entropy",
    "index_backpropagation",
    "log_sum_exp",
    "nearest",
    "residual_nearest",
    "search_path",
    "segment_stats",
]

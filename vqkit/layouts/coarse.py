"""Coarse labels: codes of a codebook in groups, so that an index is a label and a rank within its group."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vqkit.indices import check_indices
from vqkit.kernels import segment_stats
from vqkit.layouts.layout import check_integers
from vqkit.precision import widened

Clustering = Callable[[Tensor, int], Tensor]
"""Code vectors (K, D) and a number of groups to the group of each code, (K,) int64: a function of
`vqkit.clustering.groups`, or any other."""


class CoarseLabels:
    """The code with index k belongs to group `labels[k]`, in which it is the code of rank `ranks[k]`.

    A model predicts the label first and the rank given the label. With the softmax over the group alone (`mask`), the
    cross-entropy of an index is that of its label (`coarse_logits`) and that of its rank, added; so are entropies.
    All tensors are on the device of `labels`.

    Args:
        labels: (K,) integers, the group of each code; each of 0 ... G - 1 has a code at least.

    Raises:
        ValueError: `labels` is not so.

    Attributes:
        labels: (K,) int64.
        ranks: (K,) int64, in the order of the indices.
        counts: (G,) int64, codes of each group.
        members: (G, largest group) int64, the index of each rank, -1 beyond the group.
        permutation: (K,) int64, indices by group and rank: `codes[permutation]` is a codebook in which groups are
            contiguous, and where all have n codes, coarse is index // n and fine index % n.

    Source: CTF, Guo et al. 2025 (https://arxiv.org/abs/2503.16194); IAR, Hu et al. 2025
        (https://arxiv.org/abs/2501.00880).
    """

    def __init__(self, labels: Tensor) -> None:
        check_integers("labels", labels)
        if labels.ndim != 1 or not len(labels):
            raise ValueError(f"labels has shape {tuple(labels.shape)}: expected (K,), K >= 1")
        low, high = map(int, labels.aminmax())
        used = labels.unique()
        if low < 0 or len(used) <= high:
            raise ValueError(
                f"labels has {len(used)} groups in {low} ... {high}: expected groups 0 ... G - 1 with a code each; "
                "number them by labels.unique(return_inverse=True)[1]"
            )
        number = torch.arange(len(labels), device=labels.device)
        self.labels = labels.to(torch.int64, copy=True)
        self.counts = self.labels.bincount()
        self.permutation = self.labels.argsort(stable=True)
        self.ranks = torch.empty_like(self.labels)
        self.ranks[self.permutation] = number - (self.counts.cumsum(0) - self.counts).repeat_interleave(self.counts)
        self.members = torch.full((len(self.counts), int(self.counts.max())), -1, device=labels.device)
        self.members[self.labels, self.ranks] = number

    def encode(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Labels and ranks of indices; -1 (left out) stays -1.

        Args:
            indices: (...) integers, -1 ... K - 1.

        Returns:
            (...) int64 twice: coarse and fine.
        """
        check_indices(indices, [len(self.labels)], level_axis=False)
        indices = indices.long()
        left_out = indices < 0
        return self.labels[indices].masked_fill(left_out, -1), self.ranks[indices].masked_fill(left_out, -1)

    def decode(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """Indices of labels and ranks.

        Args:
            coarse: (...) integers, -1 ... G - 1.
            fine: (...) integers, -1 where `coarse` is, else 0 ... codes of the group - 1.

        Returns:
            (...) int64.
        """
        check_integers("coarse", coarse)
        check_integers("fine", fine)
        if coarse.shape != fine.shape:
            raise ValueError(f"coarse and fine have shapes {tuple(coarse.shape)}, {tuple(fine.shape)}: expected one")
        coarse, fine = coarse.long(), fine.long()
        groups, largest = self.members.shape
        known = (coarse >= 0) & (coarse < groups) & (fine >= 0) & (fine < largest)
        indices = self.members[coarse * known, fine * known].masked_fill(~known, -1)
        wrong = (indices < 0) & ((coarse != -1) | (fine != -1))
        if wrong.any():
            group, rank = int(coarse[wrong][0]), int(fine[wrong][0])
            raise ValueError(
                f"coarse and fine hold {group} and {rank}: expected a group of 0 ... {groups - 1} and a rank that it "
                "has, or twice -1; sample the rank within fine_mask"
            )
        return indices

    def mask(self, coarse: Tensor) -> Tensor:
        """(..., K) bool: which codes have the labels (...); none where it is -1. Raises as `fine_mask`."""
        check_indices(coarse, [len(self.counts)], level_axis=False, name="coarse")
        return self.labels == coarse[..., None]

    def fine_mask(self, coarse: Tensor) -> Tensor:
        """(..., largest group) bool: which ranks the groups (...) have; none where it is -1.

        Raises:
            ValueError: no integers, or a group that there is not.
        """
        check_indices(coarse, [len(self.counts)], level_axis=False, name="coarse")
        return (self.members >= 0)[coarse.long()] & (coarse >= 0)[..., None]

    def coarse_logits(self, logits: Tensor) -> Tensor:
        """Logits of the labels, (..., G), that the logits of the codes, (..., K), amount to: the log of summed
        exponentials over each group.

        Source: the cluster loss of IAR, Hu et al. 2025 (https://arxiv.org/abs/2501.00880).
        """
        if logits.shape[-1:] != self.labels.shape:
            raise ValueError(f"logits has shape {tuple(logits.shape)}: expected (..., {len(self.labels)})")
        grouped = logits[..., self.members].masked_fill(self.members < 0, -torch.inf)
        return grouped.logsumexp(-1)


def nested_labels(vectors: Tensor, num_groups: Sequence[int], clustering: Clustering) -> list[CoarseLabels]:
    """Groups of codes, groups of these groups (by the means of their codes), and so on.

    Args:
        vectors: (K, D) code vectors, of unit length where the quantizer compares by angle.
        num_groups: of each depth, the most first, each below the one before. K / 32 is a usual first one.
        clustering: `kmeans_labels`, `balanced_labels`, `agglomerative_labels`, or a function of yours.

    Returns:
        Labels of the codes, then labels of those labels, and so on.
    """
    nested: list[CoarseLabels] = []
    vectors = widened(vectors.detach())
    for count in num_groups:
        nested.append(CoarseLabels(clustering(vectors, count)))
        vectors = segment_stats(vectors, nested[-1].labels, len(nested[-1].counts), dtype=vectors.dtype).sums
        vectors = vectors / nested[-1].counts[:, None]
    return nested

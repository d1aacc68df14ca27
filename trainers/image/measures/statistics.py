"""Distances of two sets of features, and a score of one."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from vqkit.distributed import all_reduce_sum, gather_rows, rank, world_size
from vqkit.precision import widest_dtype

WAITING = 4096
"""Rows of features that wait on a device without float64, until they are summed on the host."""

BLOCK = 1024
"""Rows of a kernel matrix that are there at once."""


class FeatureStatistic(ABC):
    """A number of the features of originals and reconstructions, as sets.

    Args:
        layer: of the network, whose features are taken; None for the first of its layers, or its output.

    Attributes:
        figures: names of the numbers.
        definition: for records.
    """

    figures: ClassVar[tuple[str, ...]]
    definition: ClassVar[str]

    def __init__(self, *, layer: str | None = None) -> None:
        self.layer = layer

    @abstractmethod
    def reset(self, dim: int, device: torch.device) -> None:
        """Forget all features; those that come have `dim` numbers, and are on the device."""

    @abstractmethod
    def update(self, originals: Tensor, reconstructions: Tensor, halves: Tensor) -> None:
        """Add a batch.

        Args:
            originals: (B, D) float32.
            reconstructions: like `originals`.
            halves: (B,) int64, 0 or 1: in which half of the originals each of them is.
        """

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """The figures of all ranks; every rank must call it.

        Raises:
            ValueError: there were fewer than two images.
        """

    def record(self, halves: str) -> dict[str, Any]:
        """What a record says of the figures of the last `compute`; `halves` as for `ImageMeasure.protocol`."""
        return {"definition": self.definition}


class TwoSampleDistance(FeatureStatistic):
    """A distance of two sets, which is also taken between two halves of the originals.

    Halves show what sampling alone does: half as many images, and no tokenizer. In which half an image is follows from
    its group or its pixels, so that neither the order nor the number of ranks matters.

    Args:
        layer: see `FeatureStatistic`.

    Attributes:
        counts: images in each half of the originals, and reconstructions; after `compute`.
    """

    counts: tuple[int, int, int] = (0, 0, 0)

    def compute(self) -> dict[str, float]:
        """See `FeatureStatistic`; without the halves where one of them has fewer than two images."""
        figure, halves = self.figures
        self.counts = self.gather()
        first, second, number = self.counts
        if number < 2:
            raise ValueError(f"{figure} of {number} images: expected 2 or more, and thousands where it is to mean much")
        figures = {figure: self.between((0, 1), (2,))}
        return figures | ({halves: self.between((0,), (1,))} if min(first, second) > 1 else {})

    def record(self, halves: str) -> dict[str, Any]:
        """See `FeatureStatistic`."""
        first, second, number = self.counts
        counts = {"originals": first + second, "reconstructions": number, "halves": [first, second], "split": halves}
        return super().record(halves) | counts

    def update(self, originals: Tensor, reconstructions: Tensor, halves: Tensor) -> None:
        """See `FeatureStatistic`."""
        self.add(torch.cat([originals, reconstructions]), torch.cat([halves, torch.full_like(halves, 2)]))

    @abstractmethod
    def add(self, rows: Tensor, groups: Tensor) -> None:
        """Add features (B, D), each of a group (B,): 0 and 1 are halves of the originals, 2 is reconstructions."""

    @abstractmethod
    def gather(self) -> tuple[int, int, int]:
        """Bring together what the ranks have; returns the numbers of images: first half, second half, copies."""

    @abstractmethod
    def between(self, first: tuple[int, ...], second: tuple[int, ...]) -> float:
        """The distance between two unions of groups."""


class FrechetDistance(TwoSampleDistance):
    """|m - m'|^2 + Tr(S + S' - 2 (S S')^(1/2)) of means m and covariances S: that between two Gaussians.

    Sums, of features and their products, are in float64, and no features are kept. The covariance is that with n - 1.
    With fewer images than features it is singular: the distance is defined, but grows as n shrinks.

    Source: Heusel et al. 2017 (FID, arXiv:1706.08500), eq. 6, there of Inception's features.
    Differs: the root is that of the symmetric S^(1/2) S' S^(1/2), whose trace is the same and which needs no epsilon
    where S is singular.

    Args:
        layer: see `FeatureStatistic`.
    """

    figures = ("frechet_distance", "frechet_halves")
    definition = "|m - m'|^2 + Tr(S + S' - 2 (S S')^(1/2)), covariances with n - 1, float64"

    def reset(self, dim: int, device: torch.device) -> None:
        """See `FeatureStatistic`."""
        self.device = device
        self._waiting: list[tuple[Tensor, Tensor]] = []
        # A 1 behind the features of each row makes sums and counts out of products.
        self.products = torch.zeros(3, dim + 1, dim + 1, dtype=torch.float64, device=_home(device))

    def add(self, rows: Tensor, groups: Tensor) -> None:
        """See `TwoSampleDistance`."""
        self._waiting.append((rows, groups))
        if self.device == self.products.device or sum(len(waiting) for waiting, _ in self._waiting) >= WAITING:
            self._sum()

    def _sum(self) -> None:
        for rows, groups in self._waiting:
            rows = torch.nn.functional.pad(rows.to(self.products), (0, 1), value=1.0)
            for group, product in enumerate(self.products):
                product += (rows * (groups.to(rows.device) == group)[:, None]).mT @ rows
        self._waiting = []

    def gather(self) -> tuple[int, int, int]:
        """See `TwoSampleDistance`."""
        self._sum()
        self.summed = _over_ranks(self.products, self.device)
        first, second, number = self.summed[:, -1, -1].long().tolist()
        if 1 < number <= (dim := self.summed.shape[1] - 1):
            rank_zero_warn(
                f"frechet_distance of {number} images with {dim} features: the covariance is singular, and the "
                f"distance larger than that of more images; measure more than {dim}, or look at kernel_distance"
            )
        return first, second, number

    def between(self, first: tuple[int, ...], second: tuple[int, ...]) -> float:
        """See `TwoSampleDistance`."""
        (mean, covariance), (other_mean, other_covariance) = (
            _moments(self.summed[list(groups)].sum(0)) for groups in (first, second)
        )
        values, vectors = torch.linalg.eigh(covariance)
        root = (vectors * values.clamp(min=0).sqrt()) @ vectors.mT
        shared = torch.linalg.eigvalsh(root @ other_covariance @ root).clamp(min=0).sqrt().sum()
        traces = covariance.trace() + other_covariance.trace()
        return float((mean - other_mean).square().sum() + traces - 2 * shared)

    def record(self, halves: str) -> dict[str, Any]:
        """See `FeatureStatistic`."""
        dim, number = self.products.shape[1] - 1, self.counts[2]
        singular = f"singular: {number} images, {dim} features" if number <= dim else f"of {dim} features"
        return super().record(halves) | {"covariance": singular}


class KernelDistance(TwoSampleDistance):
    """Squared maximum mean discrepancy under the kernel (x y / D + 1)^3, estimated without bias: KID.

    Of the whole set at once: the mean over all pairs, where published tools take that over random subsets of 1,000.
    Both estimate the same number; this one has the least variance, and draws nothing. It may be below 0, also because
    reconstructions go with their originals, where the estimate supposes sets that are drawn apart.

    Features are kept: 2 n D numbers of 4 bytes on the device, 0.8 GB for 50,000 images and 2,048 features; all ranks'
    on each while it is computed, then in float64. That takes 8 n^2 D operations, divided among the ranks.

    Source: Bińkowski et al. 2018 (arXiv:1801.01401), sec. 4; Gretton et al. 2012, eq. 3
    (https://jmlr.org/papers/v13/gretton12a.html).

    Args:
        layer: see `FeatureStatistic`.
    """

    figures = ("kernel_distance", "kernel_halves")
    definition = "unbiased squared MMD with the kernel (x y / D + 1)^3 over all pairs of the whole set, float64"

    def reset(self, dim: int, device: torch.device) -> None:
        """See `FeatureStatistic`."""
        self._rows = [torch.zeros(0, dim, device=device)]
        self._groups = [torch.zeros(0, dtype=torch.int64, device=device)]

    def add(self, rows: Tensor, groups: Tensor) -> None:
        """See `TwoSampleDistance`."""
        self._rows.append(rows)
        self._groups.append(groups)

    def gather(self) -> tuple[int, int, int]:
        """See `TwoSampleDistance`."""
        rows, groups = gather_rows(torch.cat(self._rows)), gather_rows(torch.cat(self._groups))
        rows = rows.to(_home(rows.device), torch.float64)
        members = torch.nn.functional.one_hot(groups.to(rows.device), 3).to(rows)
        # (3, 3): sums of the kernel over all pairs of two groups, those of an image with itself left out.
        pairs = torch.zeros(3, 3, dtype=torch.float64, device=rows.device)
        for start in range(rank() * BLOCK, len(rows), world_size() * BLOCK):
            some = slice(start, start + BLOCK)
            pairs += members[some].mT @ (_kernel(rows[some] @ rows.mT, rows.shape[1]) @ members)
            own = _kernel(rows[some].square().sum(1), rows.shape[1])
            pairs -= torch.diag(own @ members[some])
        self.pairs = _over_ranks(pairs, groups.device)
        self.numbers = members.sum(0).cpu()
        first, second, number = self.numbers.long().tolist()
        return first, second, number

    def between(self, first: tuple[int, ...], second: tuple[int, ...]) -> float:
        """See `TwoSampleDistance`."""

        def mean(groups: tuple[int, ...], others: tuple[int, ...]) -> Tensor:
            number, other = (self.numbers[list(chosen)].sum() for chosen in (groups, others))
            total = self.pairs[list(groups)][:, list(others)].sum()
            return total / (number * (number - 1 if groups == others else other))

        return float(mean(first, first) + mean(second, second) - 2 * mean(first, second))


class InceptionScore(FeatureStatistic):
    """exp E KL(p(y|x) || p(y)) of the classes y that a network sees in reconstructions x; and of the originals.

    Of the whole set at once, in sums; published tools take the mean over ten splits, which is a little lower.

    Source: Salimans et al. 2016 (arXiv:1606.03498), sec. 4, there of Inception's logits.

    Args:
        layer: one that gives logits, which has to be said: `fc.unbiased` of Inception; None for the first of the
            network's layers, or its output.
    """

    figures = ("inception_score", "inception_score_originals")
    definition = "exp(mean over images of KL(p(y|x) || p(y))) of softmax of the layer, whole set, float64"

    def __init__(self, *, layer: str | None) -> None:
        super().__init__(layer=layer)  # no default: the first layer is most often the one with features

    def reset(self, dim: int, device: torch.device) -> None:
        """See `FeatureStatistic`."""
        self.sums = torch.zeros(2, dim + 2, dtype=widest_dtype(device), device=device)  # p, sum of p ln p, images

    def update(self, originals: Tensor, reconstructions: Tensor, halves: Tensor) -> None:
        """See `FeatureStatistic`."""
        for logits, sums in zip((reconstructions, originals), self.sums, strict=True):
            logarithms = logits.to(sums).log_softmax(1)
            chances = logarithms.exp()
            columns = [chances, (chances * logarithms).sum(1, keepdim=True), torch.ones_like(chances[:, :1])]
            sums += torch.cat(columns, dim=1).sum(0)

    def compute(self) -> dict[str, float]:
        """See `FeatureStatistic`."""
        summed = all_reduce_sum(self.sums).cpu().double()
        if summed[0, -1] < 2:
            raise ValueError(f"inception_score of {summed[0, -1]:.0f} images: expected 2 or more, at best thousands")
        means = summed[:, :-1] / summed[:, -1:]
        marginal = torch.special.entr(means[:, :-1]).sum(1)
        return dict(zip(self.figures, (means[:, -1] + marginal).exp().tolist(), strict=True))


def _moments(products: Tensor) -> tuple[Tensor, Tensor]:
    """(D + 1, D + 1) sums of products of rows that end with a 1 -> mean (D,) and covariance (D, D)."""
    number = products[-1, -1]
    mean = products[-1, :-1] / number
    return mean, (products[:-1, :-1] - number * torch.outer(mean, mean)) / (number - 1)


def _kernel(products: Tensor, dim: int) -> Tensor:
    return (products / dim + 1) ** 3


def _home(device: torch.device) -> torch.device:
    """Where sums in float64 can be: the device, or the host."""
    return device if widest_dtype(device) == torch.float64 else torch.device("cpu")


def _over_ranks(sums: Tensor, device: torch.device) -> Tensor:
    """Sums of all ranks in float64, on the host; `device` is where ranks talk to each other."""
    if sums.device == device:
        return all_reduce_sum(sums).cpu()
    high = sums.float()  # the device has no float64: a number goes as two
    parts = torch.stack([high, (sums - high).float()])[None]
    return gather_rows(parts.to(device)).cpu().double().sum((0, 1))

"""Sets of features, of originals and of reconstructions."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trainers.image.measures.measure import ImageMeasure
from trainers.image.measures.statistics import FeatureStatistic
from trainers.image.networks.network import FrozenNetwork
from vqkit.distributed import counter_random


class FeatureMeasure(ImageMeasure):
    """Statistics of the features that a network has of originals and of reconstructions.

    The network runs once for each image, whatever the statistics. Features with positions (B, D, h, w) are averaged
    over them.

    Args:
        network: by which the figures are called; `layers` are those that statistics may take.
        statistics: such as `FrechetDistance` and `KernelDistance`.
        name: with which the names of the figures begin: `inception` gives `inception_frechet_distance`.

    Raises:
        ValueError: there are no statistics or two of a kind, or the network does not have the layer of one, or gives
            tokens there.
    """

    def __init__(self, network: FrozenNetwork, statistics: Sequence[FeatureStatistic], *, name: str) -> None:
        super().__init__(name)
        self.network = network
        self.statistics = list(statistics)
        kinds = [type(statistic).__name__ for statistic in self.statistics]
        if not kinds or len(set(kinds)) < len(kinds):
            raise ValueError(f"statistics of {name}: {kinds}: expected one or more, each of its own kind")
        for statistic in self.statistics:
            if statistic.layer not in (None, *network.layers):
                raise ValueError(
                    f"layer={statistic.layer!r} of {type(statistic).__name__} in {name}: expected one of the network's "
                    f"layers, {list(network.layers)}; name it there too"
                )
        size = network.resize.resolution if network.resize else 224
        with torch.inference_mode(False), torch.no_grad():
            self.dims = [features.shape[1] for features in self._features(torch.zeros(1, 3, size, size))]
        self.reset(torch.device("cpu"))

    def reset(self, device: torch.device) -> None:
        """See `ImageMeasure`."""
        with torch.inference_mode(False):  # else what is moved could not be used outside of it
            self.network.to(device)
        for statistic, dim in zip(self.statistics, self.dims, strict=True):
            statistic.reset(dim, device)

    @torch.no_grad()
    def update(self, originals: Tensor, reconstructions: Tensor, groups: Tensor) -> dict[str, Tensor]:
        """See `ImageMeasure`; a single image has no figure."""
        halves = (counter_random(groups, seed=0, step=0) < 0.5).to(torch.int64)
        pairs = zip(self._features(originals), self._features(reconstructions), strict=True)
        for statistic, pair in zip(self.statistics, pairs, strict=True):
            statistic.update(*pair, halves)
        return {}

    def _features(self, images: Tensor) -> list[Tensor]:
        """(B, D) for each of the statistics."""
        found = dict(zip(self.network.layers or (None,), self.network(images), strict=True))
        default = next(iter(found.values()))
        taken = []
        for statistic in self.statistics:
            features = default if statistic.layer is None else found[statistic.layer]
            if features.ndim not in (2, 4):
                raise ValueError(
                    f"layer {statistic.layer!r} of {self.name} gives {tuple(features.shape)}: expected (B, D) or "
                    "(B, D, h, w); take the network's output, or another layer"
                )
            taken.append(features.flatten(2).mean(2) if features.ndim == 4 else features)
        return taken

    def compute(self) -> dict[str, float]:
        """See `ImageMeasure`."""
        figures = [statistic.compute() for statistic in self.statistics]
        return {f"{self.name}_{name}": value for each in figures for name, value in each.items()}

    def protocol(self, *, halves: str) -> dict[str, Any]:
        """See `ImageMeasure`."""
        records = {
            statistic.figures[0]: {"layer": statistic.layer or "first", **statistic.record(halves)}
            for statistic in self.statistics
        }
        return {**self.network.record(), **records}

"""Audio metrics on full utterances, each with the protocol by which it was measured."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from trainers.audio.measures import ESTOI, SISDR, STOI, Measure, MelDistance, STFTDistance
from trainers.audio.perceptual import DNSMOS, NarrowbandPESQ, ViSQOL, WidebandPESQ
from trainers.core.metrics import TokenizerMetrics, versions
from vqkit.bitstream.container import Sound
from vqkit.distributed import all_reduce_sum

MEASURES: dict[str, type[Measure]] = {
    measure.name: measure
    for measure in (SISDR, STOI, ESTOI, MelDistance, STFTDistance, WidebandPESQ, NarrowbandPESQ, DNSMOS, ViSQOL)
}
"""What `AudioMetrics` can be asked for."""

QUICK = ("si_sdr", "stoi", "mel_distance", "stft_distance")
"""Measures that cost little beside a validation pass; the others take about a second for each utterance."""

PROTOCOL = {
    "range": "[-1, 1], reconstructions clipped to it; samples that are not finite count as 0",
    "utterances": "whole utterances, one by one, at the codec's sample rate; channels one by one, then their mean; "
    "then the mean over utterances",
    "kbps": "frame rate * sum over levels of log2(codebook_size) / 1000, without entropy coding",
    "entropy_kbps": "frame rate * sum over levels of the order-0 entropy of the codes of this very set / 1000",
    "codebook_usage": "share of the codes used at least once by the whole set, mean over levels; perplexity 2^entropy "
    "of the whole set, mean over levels",
}
CODED_PROTOCOL = {
    "coded_kbps": "bits of files of indices (vqkit.bitstream), one for each utterance, with headers / seconds / 1000"
}
PACKAGES = (
    "torch",
    "torchaudio",
    "torchmetrics",
    "pystoi",
    "pesq",
    "auraloss",
    "speechmos",
    "visqol-python",
    "soundfile",
)


class AudioMetrics(TokenizerMetrics):
    """Distortion, rate and codebook usage of a codec on a set of recordings.

    A measure that cannot be taken here (`unavailable`) has no figure, and `protocol` says why. Measures are computed on
    the CPU.

    Args:
        codebook_sizes: K of each level, or of the single codebook.
        sample_rate: of the waveforms, in Hz.
        frame_rate: frames of codes for each second; one for each level, where they differ.
        books: the codebook of each level; see `CodebookUsage`.
        measures: names of `MEASURES`.

    Attributes:
        unavailable: name -> why it cannot be measured here, and the fix.

    Raises:
        ValueError: an unknown measure, a rate that is not positive, or not one for each level.
    """

    def __init__(
        self,
        codebook_sizes: int | Sequence[int],
        *,
        sample_rate: int,
        frame_rate: float | Sequence[float],
        books: Sequence[int] | None = None,
        measures: Sequence[str] = tuple(MEASURES),
    ) -> None:
        super().__init__(codebook_sizes, books=books)
        levels = len(self.codebook_sizes)
        rates = tuple(frame_rate) if isinstance(frame_rate, Sequence) else (frame_rate,) * levels
        if not sample_rate > 0 or not all(rate > 0 for rate in rates) or len(rates) != levels:
            raise ValueError(
                f"sample_rate={sample_rate}, frame_rate={frame_rate}: expected positive numbers, in Hz, and one frame "
                f"rate or {levels}, one for each level"
            )
        self.sample_rate, self.frame_rates = sample_rate, rates
        chosen = _chosen(measures, sample_rate)
        self.unavailable = {measure.name: measure.obstacle for measure in chosen if measure.obstacle}
        self.measures = [measure for measure in chosen if measure.name not in self.unavailable]
        # For each figure its sum over utterances, and of how many.
        self.sums = torch.zeros(sum(len(measure.figures) for measure in self.measures), 2, dtype=torch.float64)
        # Utterances, seconds, utterances with samples that are not finite.
        self.counts = torch.zeros(3, dtype=torch.float64)

    @torch.no_grad()
    def update(self, originals: Tensor, reconstructions: Tensor, indices: Tensor) -> dict[str, Tensor]:
        """Add utterances.

        Args:
            originals: (B, C, T) in [-1, 1], any floating dtype, T at least 1.
            reconstructions: like `originals`; values outside of the range are clipped.
            indices: (B, frames[, levels]) int64, as `quantizer.by_level` gives them.

        Returns:
            The figures of the measures, (B,) each; NaN for an utterance that a measure leaves out.

        Raises:
            ValueError: the shapes differ, there is no sample, or an original is not finite.
        """
        self._check(originals, reconstructions)
        measured, broken = [], 0
        with torch.autocast(originals.device.type, enabled=False):
            for original, copy in zip(originals.float().cpu(), reconstructions.float().cpu(), strict=True):
                broken += not bool(copy.isfinite().all())
                measured.append(self._measured(original, copy.nan_to_num(0.0, 0.0, 0.0).clamp(-1, 1)))
        seconds = len(originals) * originals.shape[-1] / self.sample_rate
        rows = torch.stack(measured)
        self.sums += rows.sum(0).to(self.sums)
        self.counts += torch.tensor([len(originals), seconds, broken], dtype=torch.float64).to(self.counts)
        if self.usage is not None:
            self.usage.update(indices)
        names = [name for measure in self.measures for name in measure.figures]
        values = torch.where(rows[..., 1] > 0, rows[..., 0], torch.nan)
        return dict(zip(names, values.T, strict=True))

    def _measured(self, original: Tensor, reconstruction: Tensor) -> Tensor:
        """(figures, 2): of one utterance (C, T), the mean over channels and 1, or zeros where it is left out."""
        rows: list[list[float]] = []
        for measure in self.measures:
            found = [measure(*channel) for channel in zip(original, reconstruction, strict=True)]
            values = [value for value in found if value is not None]
            for name in measure.figures:
                mean = sum(value[name] for value in values) / len(values) if values else 0.0
                rows.append([mean, float(bool(values))])
        return torch.tensor(rows, dtype=torch.float64).reshape(-1, 2)

    def extent(self, originals: Tensor) -> Sound:
        """See `TokenizerMetrics`."""
        return Sound(originals.shape[-1], self.sample_rate)

    def compute(self) -> dict[str, float]:
        """The figures of all ranks; every rank must call it.

        Returns:
            The figures of the measures (si_sdr in dB, stoi, ...); for those that left utterances out, how many, as
            `<measure>_left_out`, and no figure if it was all of them. kbps, seconds, utterances, not_finite
            (reconstructions with NaN or infinity), coded_kbps if files were added, and entropy_kbps and
            `usage_figures` if the codes can be counted.

        Raises:
            ValueError: no utterance was seen on any rank.
        """
        sums = all_reduce_sum(self.sums.clone()).tolist()
        utterances, seconds, broken = all_reduce_sum(self.counts.clone()).tolist()
        usage, entropies = self.usage_figures()
        coded_bits = self.coded_bits()
        if not utterances:
            raise ValueError("no utterances were measured: the split is empty")
        figures: dict[str, float] = {}
        rows = iter(sums)
        for measure in self.measures:
            found = dict(zip(measure.figures, rows, strict=False))
            counted = found[measure.figures[0]][1]
            figures |= {name: total / count for name, (total, count) in found.items() if count}
            if counted < utterances:
                figures[f"{measure.name}_left_out"] = int(utterances - counted)
        bits = [math.log2(size) for size in self.codebook_sizes]
        figures |= {"kbps": self._kbps(bits), "seconds": seconds, "utterances": int(utterances)}
        figures |= {"coded_kbps": coded_bits / seconds / 1000} if coded_bits else {}
        figures["not_finite"] = int(broken)
        return figures | ({"entropy_kbps": self._kbps(entropies)} | usage if usage else {})

    def _kbps(self, bits: Sequence[float]) -> float:
        """Of so many bits for an index of each level."""
        return sum(rate * own for rate, own in zip(self.frame_rates, bits, strict=True)) / 1000

    @staticmethod
    def _check(originals: Tensor, reconstructions: Tensor) -> None:
        if originals.shape != reconstructions.shape:
            raise ValueError(
                f"reconstructions have shape {tuple(reconstructions.shape)}: expected {tuple(originals.shape)}"
            )
        if originals.ndim != 3 or not originals.shape[-1]:
            raise ValueError(f"originals have shape {tuple(originals.shape)}: expected (B, C, T) with T at least 1")
        if not bool(originals.isfinite().all()):
            raise ValueError("originals hold samples that are NaN or infinite: leave these recordings out")


def protocol(
    figures: Mapping[str, float], *, sample_rate: int, measures: Sequence[str] = tuple(MEASURES), **circumstances: Any
) -> dict[str, Any]:
    """How `figures` were measured, so that nobody compares what cannot be compared.

    Args:
        figures: what `AudioMetrics.compute` returned.
        sample_rate: as given to `AudioMetrics`.
        measures: as given to `AudioMetrics`.
        circumstances: facts that only the caller knows (split, checkpoint, precision).
    """
    record: dict[str, Any] = PROTOCOL | (CODED_PROTOCOL if "coded_kbps" in figures else {})
    for measure in _chosen(measures, sample_rate):
        record[measure.name] = f"not measured: {measure.obstacle}" if measure.obstacle else measure.protocol
        left_out = figures.get(f"{measure.name}_left_out")
        if left_out:
            record[measure.name] += f"; left out here: {left_out} of {figures['utterances']}"
    counts = {name: figures[name] for name in ("utterances", "seconds")}
    return record | {"sample_rate": sample_rate, "set": counts} | circumstances | {"versions": versions(PACKAGES)}


def _chosen(measures: Sequence[str], sample_rate: int) -> list[Measure]:
    unknown = [name for name in measures if name not in MEASURES]
    if unknown:
        raise ValueError(f"measures={list(measures)}: unknown {unknown}; expected some of {list(MEASURES)}")
    return [MEASURES[name](sample_rate) for name in dict.fromkeys(measures)]

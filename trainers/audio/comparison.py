"""A codec beside what a user would compare it with, on the same recordings at the same or the nearest bitrate."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainers.audio.baselines import Coded, opus, speech_codecs
from trainers.audio.examples import write_sounds
from trainers.audio.figures import spectrogram_figure, usage_figure
from trainers.audio.mdct_kmeans import MDCTKMeans, SplitMDCTKMeans
from trainers.audio.metrics import MEASURES, AudioMetrics
from trainers.audio.recordings import scan, within_full_scale
from trainers.audio.segments import RecordingStore
from trainers.audio.word_errors import Transcriber
from trainers.data.files import named
from vqkit import AudioTokenizer

TITLES = {
    "vqkit": "vqkit (this run)",
    "mdct_kmeans": "k-means of MDCT frames",
    "mdct_split_kmeans": "k-means of MDCT bands",
    "opus": "Opus",
    "codec2": "Codec2",
    "speex": "Speex",
}
"""Rows of the table, in order."""


@dataclass
class Utterance:
    """A recording and, if it is known, what is said in it.

    Attributes:
        name: of its file.
        wave: (T,) float32 in [-1, 1], one channel, at the codec's sample rate.
        text: what is said; empty if unknown.
    """

    name: str
    wave: Tensor
    text: str = ""


@dataclass
class Comparison:
    """Figures and sound of a codec and its baselines.

    Attributes:
        figures: of the codec, as `AudioMetrics.compute` gives them.
        per_level: of the codec, as `AudioMetrics.per_level` gives them.
        counts: (levels, K) how often each code was used.
        baselines: name -> the measures, kbps and protocol; or why there are none.
        waves: name -> reconstructions (T,); `original` and `vqkit` too.
    """

    figures: dict[str, Any]
    per_level: dict[str, list[float]]
    counts: Tensor
    baselines: dict[str, dict[str, Any] | str] = field(default_factory=dict)
    waves: dict[str, list[Tensor]] = field(default_factory=dict)


def load_utterances(folder: Path, sample_rate: int) -> list[Utterance]:
    """All recordings below a folder, by name: the mean of their channels, resampled, with the texts of transcripts.tsv.

    Args:
        folder: of sound files; each of its folders may hold a transcripts.tsv (name, text, after a line of titles).
        sample_rate: to resample to, in Hz.

    Raises:
        ValueError: there are none.
    """
    usable = scan(folder, channels=1, min_seconds=0.0)
    if not usable.files:
        raise ValueError(
            f"{folder} holds no recordings that can be used; {len(usable.skipped)} skipped: {named(usable.skipped)}"
        )
    store = RecordingStore(folder, usable.files, sample_rate=sample_rate, channels=1)
    texts: dict[Path, str] = {}
    for table in folder.rglob("transcripts.tsv"):
        for line in table.read_text().splitlines()[1:]:
            name, _, text = line.partition("\t")
            texts[table.parent / name] = text
    found = []
    for recording in usable.files:
        wave = torch.from_numpy(within_full_scale(store.wave(recording))[:, 0])
        path = folder / recording.name
        found.append(Utterance(path.stem, wave, texts.get(path, "")))
    return found


def compare(
    tokenizer: AudioTokenizer,
    utterances: Sequence[Utterance],
    training: Sequence[Tensor],
    *,
    measures: Sequence[str] = tuple(MEASURES),
    kmeans_frames: int = 40_000,
    transcriber: Transcriber | None = None,
) -> Comparison:
    """Measure a codec, k-means of MDCT frames at the same rate, and Opus, Codec2 and Speex at the nearest.

    Args:
        tokenizer: of one channel.
        utterances: that it never saw, at its sample rate.
        training: recordings (T,) for the k-means, at the codec's sample rate.
        measures: names of `trainers.audio.metrics.MEASURES`.
        kmeans_frames: how many frames of them.
        transcriber: to measure word errors with; None leaves them out.

    Raises:
        ValueError: the codec has several channels.
    """
    if tokenizer.channels != 1:
        raise ValueError(f"the comparison is of codecs with one channel; this one has {tokenizer.channels}")
    waves = [utterance.wave for utterance in utterances]
    comparison, metrics = _measure_codec(tokenizer, waves, measures)
    rate, sizes = tokenizer.sample_rate, metrics.codebook_sizes
    for name, kind in (("mdct_kmeans", MDCTKMeans), ("mdct_split_kmeans", SplitMDCTKMeans)):
        baseline = kind(training, sizes, hop_length=tokenizer.downsampling_factor, num_frames=kmeans_frames)
        copies = [baseline.decode(baseline.encode(wave), length=len(wave)) for wave in waves]
        _add(comparison, name, Coded(copies, comparison.figures["kbps"], None, baseline.protocol), rate, measures)
    coded: dict[str, Coded | str] = {"opus": opus(waves, rate, comparison.figures["kbps"])}
    coded |= speech_codecs(waves, rate, comparison.figures["kbps"])
    for name, result in coded.items():
        _add(comparison, name, result, rate, measures)
    if transcriber is not None:
        _add_word_errors(comparison, transcriber, utterances, rate)
    return comparison


@torch.no_grad()
def _measure_codec(
    tokenizer: AudioTokenizer, waves: Sequence[Tensor], measures: Sequence[str]
) -> tuple[Comparison, AudioMetrics]:
    """From the codes alone, as the reader of a token file would reconstruct."""
    quantizer = tokenizer.quantizer
    sizes = quantizer.codebook_sizes if quantizer.level_axis else quantizer.codebook_sizes[:1]
    metrics = AudioMetrics(sizes, sample_rate=tokenizer.sample_rate, frame_rate=tokenizer.frame_rate, measures=measures)
    copies = []
    for wave in waves:
        indices = tokenizer.encode(wave[None, None])
        copy = tokenizer.decode(indices, length=len(wave))
        metrics.update(wave[None, None], copy, indices)
        copies.append(copy[0, 0].clamp(-1, 1))
    counts = metrics.usage.total_counts() if metrics.usage is not None else torch.zeros(len(sizes), 1)
    comparison = Comparison(metrics.compute(), metrics.per_level(), counts)
    comparison.waves = {"original": list(waves), "vqkit": copies}
    return comparison, metrics


def _add(comparison: Comparison, name: str, coded: Coded | str, sample_rate: int, measures: Sequence[str]) -> None:
    if isinstance(coded, str):
        comparison.baselines[name] = coded
        return
    metrics = AudioMetrics(1, sample_rate=sample_rate, frame_rate=1.0, measures=measures)
    for original, copy in zip(comparison.waves["original"], coded.waves, strict=True):
        metrics.update(original[None, None], copy[None, None], torch.zeros(1, 1, dtype=torch.int64))
    figures = metrics.compute()
    kept = {key: figures[key] for measure in metrics.measures for key in measure.figures if key in figures}
    row = {"kbps": coded.kbps} | kept | {"protocol": coded.protocol}
    comparison.baselines[name] = row if coded.file_kbps is None else row | {"file_kbps": coded.file_kbps}
    comparison.waves[name] = coded.waves


def _add_word_errors(
    comparison: Comparison, transcriber: Transcriber, utterances: Sequence[Utterance], sample_rate: int
) -> None:
    said = [number for number, utterance in enumerate(utterances) if transcriber.understands(utterance.text)]
    texts = [utterances[number].text for number in said]
    if not texts:
        return
    for name, waves in comparison.waves.items():
        errors = transcriber.word_error_rate([waves[number] for number in said], texts, sample_rate)
        if name in ("original", "vqkit"):
            comparison.figures["wer" if name == "vqkit" else "wer_original"] = errors
        else:
            row = comparison.baselines[name]
            assert isinstance(row, dict)
            row["wer"] = errors


def draw(comparison: Comparison, folder: Path, *, sample_rate: int, rows: int = 3) -> None:
    """Write `reconstructions.png`, `codebook.png` and the sounds of the first utterances of each kind into a folder.

    Args:
        comparison: what `compare` returned.
        folder: made if it is not there.
        sample_rate: in Hz.
        rows: utterances, evenly spaced over the set.
    """
    folder.mkdir(parents=True, exist_ok=True)
    total = len(comparison.waves["original"])
    chosen = sorted({number * total // rows for number in range(min(rows, total))})
    columns = {TITLES.get(name, name): [waves[n] for n in chosen] for name, waves in comparison.waves.items()}
    captions = {title: [""] * len(chosen) for title in columns}
    for name, waves in comparison.waves.items():
        if name != "original":
            captions[TITLES[name]] = [_stoi(comparison.waves["original"][n], waves[n], sample_rate) for n in chosen]
    spectrogram_figure(columns, captions, folder / "reconstructions.png", sample_rate=sample_rate)
    used = comparison.figures.get("codebook_usage", 0.0)
    title = f"recordings it never saw: {used:.0%} of the codes used"
    usage_figure(list(comparison.counts), folder / "codebook.png", title=title)
    pairs = [
        [wave[None] for wave in (comparison.waves[name][n] for n in range(total))] for name in ("original", "vqkit")
    ]
    write_sounds(folder / "samples", pairs[0], pairs[1], sample_rate)


def table(figures: dict[str, Any], baselines: dict[str, dict[str, Any] | str]) -> str:
    """The comparison as lines for a person."""
    lines = [f"{'':26}{'STOI':>7}{'PESQ':>7}{'mel':>8}{'SI-SDR':>10}{'WER':>7}{'kbit/s':>8}{'usage':>8}"]
    for name, row in ({"vqkit": figures} | baselines).items():
        if isinstance(row, str):
            lines.append(f"{TITLES[name]:26}{row}")
            continue
        usage = f"{row['codebook_usage']:.1%}" if "codebook_usage" in row else "-"
        pesq = row.get("pesq", row.get("pesq_nb"))
        cells = f"{_number(row.get('stoi'), 3):>7}{_number(pesq, 2):>7}{_number(row.get('mel_distance'), 3):>8}"
        decibels = f"{_number(row.get('si_sdr'), 2)} dB"
        words = "-" if row.get("wer") is None else f"{row['wer']:.0%}"
        lines.append(f"{TITLES[name]:26}{cells}{decibels:>10}{words:>7}{row['kbps']:>8.2f}{usage:>8}")
    return "\n".join(lines)


def verdict(figures: dict[str, Any], baselines: dict[str, dict[str, Any] | str]) -> str:
    """Whether the codec is better than k-means at the same rate, in words; honest either way."""
    words = []
    for name in ("mdct_kmeans", "mdct_split_kmeans"):
        row = baselines[name]
        assert isinstance(row, dict)
        better = [
            f"{title} {'better' if sign * (figures[measure] - row[measure]) > 0 else 'NOT better'}"
            for measure, title, sign in (("stoi", "STOI", 1), ("mel_distance", "mel distance", -1))
            if measure in figures and measure in row
        ]
        words.append(f"against {TITLES[name]}: {', '.join(better)}")
    return "; ".join(words)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _stoi(original: Tensor, copy: Tensor, sample_rate: int) -> str:
    found = MEASURES["stoi"](sample_rate)(original, copy.clamp(-1, 1))
    return "" if found is None else f"STOI {found['stoi']:.2f}"

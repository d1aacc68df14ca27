"""A codec beside what a user would compare it with, on the same recordings at the same or the nearest bitrate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainers.audio.baselines import Coded, opus, speech_codecs
from trainers.audio.figures import spectrogram_figure, usage_figure
from trainers.audio.files import scan, within_full_scale, write_sounds
from trainers.audio.mdct_kmeans import MDCTKMeans, SplitMDCTKMeans
from trainers.audio.metrics import MEASURES, AudioMetrics
from trainers.audio.samples import AudioStore
from trainers.audio.word_errors import Transcriber
from trainers.core import comparison as shared
from trainers.core.comparison import Baseline, Column, Comparison
from trainers.data.files import named
from vqkit import AudioTokenizer
from vqkit.bitstream.codec import TokenCodec
from vqkit.bitstream.container import FINGERPRINT_BYTES
from vqkit.bitstream.order import code_order

TITLES = {
    "vqkit": "vqkit (this run)",
    "mdct_kmeans": "k-means of MDCT frames",
    "mdct_split_kmeans": "k-means of MDCT bands",
    "opus": "Opus",
    "codec2": "Codec2",
    "speex": "Speex",
    "opus_coded": "Opus, at coded bytes",
    "codec2_coded": "Codec2, at coded bytes",
    "speex_coded": "Speex, at coded bytes",
}
"""Rows of the table, in order."""

COLUMNS = (
    Column("STOI", 7, "{:.3f}", ("stoi",)),
    Column("PESQ", 7, "{:.2f}", ("pesq", "pesq_nb")),
    Column("mel", 8, "{:.3f}", ("mel_distance",)),
    Column("SI-SDR", 10, "{:.2f} dB", ("si_sdr",)),
    Column("WER", 7, "{:.0%}", ("wer",)),
    Column("kbit/s", 8, "{:.2f}", ("kbps",)),
    Column("zero-order", 12, "{:.2f}", ("entropy_kbps",)),
    Column("coded", 8, "{:.2f}", ("coded_kbps",)),
    Column("usage", 8, "{:.1%}", ("codebook_usage",)),
)
table = partial(shared.table, COLUMNS, TITLES)
"""The comparison as lines for a person."""


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
    store = AudioStore(folder, usable.files, sample_rate=sample_rate, channels=1)
    texts: dict[Path, str] = {}
    for table in folder.rglob("transcripts.tsv"):
        for line in table.read_text().splitlines()[1:]:
            name, _, text = line.partition("\t")
            texts[table.parent / name] = text
    found = []
    for file in usable.files:
        wave = torch.from_numpy(within_full_scale(store.wave(file))[:, 0])
        path = store.path(file)
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
    """Measure a codec, k-means of MDCT frames at the same rate, and Opus, Codec2 and Speex.

    These come at the rate nearest to the nominal one of the codec, and at that nearest to its coded one, what files of
    its tokens take.

    Args:
        tokenizer: of one channel.
        utterances: that it never saw, at its sample rate.
        training: recordings (T,) for the k-means, at the codec's sample rate.
        measures: names of `trainers.audio.metrics.MEASURES`.
        kmeans_frames: how many frames of them.
        transcriber: to measure word errors with; None leaves them out.

    Raises:
        ValueError: the codec has several channels, or levels of different rates, which the k-means have not.
    """
    if len(set(tokenizer.level_rates)) > 1:
        raise ValueError(
            "the comparison is of codecs with one frame rate, and the levels of this one have "
            f"{tokenizer.level_rates}: measure it by python -m trainers test"
        )
    if tokenizer.channels != 1:
        raise ValueError(f"the comparison is of codecs with one channel; this one has {tokenizer.channels}")
    waves = [utterance.wave for utterance in utterances]
    comparison, metrics = _measure_codec(tokenizer, waves, measures)
    rate, sizes = tokenizer.sample_rate, metrics.codebook_sizes
    for name, kind in (("mdct_kmeans", MDCTKMeans), ("mdct_split_kmeans", SplitMDCTKMeans)):
        baseline = kind(training, sizes, hop_length=tokenizer.downsampling_factor, num_frames=kmeans_frames)
        indices = [baseline.encode(wave) for wave in waves]
        copies = [baseline.decode(codes, length=len(wave)) for codes, wave in zip(indices, waves, strict=True)]
        _add(comparison, name, Coded(copies, comparison.figures["kbps"], None, baseline.protocol), rate, measures)
        orders = [code_order(codes) for codes in baseline.codebooks]
        token_codec = TokenCodec(sizes, fingerprint=bytes(FINGERPRINT_BYTES), orders=orders)
        bits = 8 * sum(len(token_codec.pack(codes[None]).content) for codes in indices)
        row = comparison.baselines[name]
        assert isinstance(row, dict)
        row["coded_kbps"] = bits / comparison.figures["seconds"] / 1000
    for ending, wanted in (("", comparison.figures["kbps"]), ("_coded", comparison.figures["coded_kbps"])):
        found = {"opus": opus(waves, rate, wanted), **speech_codecs(waves, rate, wanted)}
        for name, result in found.items():
            _add(comparison, name + ending, result, rate, measures)
    if transcriber is not None:
        _add_word_errors(comparison, transcriber, utterances, rate)
    return comparison


@torch.no_grad()
def _measure_codec(
    tokenizer: AudioTokenizer, waves: Sequence[Tensor], measures: Sequence[str]
) -> tuple[Comparison, AudioMetrics]:
    """From the codes alone, as the reader of a token file would reconstruct."""
    sizes = tokenizer.quantizer.level_sizes
    metrics = AudioMetrics(sizes, sample_rate=tokenizer.sample_rate, frame_rate=tokenizer.frame_rate, measures=measures)
    copies, codec = [], TokenCodec.of(tokenizer)
    for wave in waves:
        indices = tokenizer.encode(wave[None, None])
        copy = tokenizer.decode(indices, length=len(wave))
        metrics.update(wave[None, None], copy, indices)
        metrics.add_coded(codec, wave[None, None], indices)
        copies.append(copy[0, 0].clamp(-1, 1))
    counts = metrics.usage.total_counts() if metrics.usage is not None else torch.zeros(len(sizes), 1)
    reconstructions = {"original": list(waves), "vqkit": copies}
    return Comparison(metrics.compute(), metrics.per_level(), counts, reconstructions), metrics


def _add(comparison: Comparison, name: str, coded: Coded | str, sample_rate: int, measures: Sequence[str]) -> None:
    if isinstance(coded, str):
        comparison.baselines[name] = coded
        return
    metrics = AudioMetrics(1, sample_rate=sample_rate, frame_rate=1.0, measures=measures)
    for original, copy in zip(comparison.reconstructions["original"], coded.waves, strict=True):
        metrics.update(original[None, None], copy[None, None], torch.zeros(1, 1, dtype=torch.int64))
    figures = metrics.compute()
    kept = {key: figures[key] for measure in metrics.measures for key in measure.figures if key in figures}
    row = {"kbps": coded.kbps} | kept | {"protocol": coded.protocol}
    comparison.baselines[name] = row if coded.file_kbps is None else row | {"file_kbps": coded.file_kbps}
    comparison.reconstructions[name] = coded.waves


def _add_word_errors(
    comparison: Comparison, transcriber: Transcriber, utterances: Sequence[Utterance], sample_rate: int
) -> None:
    said = [number for number, utterance in enumerate(utterances) if transcriber.understands(utterance.text)]
    texts = [utterances[number].text for number in said]
    if not texts:
        return
    for name, waves in comparison.reconstructions.items():
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
    total = len(comparison.reconstructions["original"])
    chosen = sorted({number * total // rows for number in range(min(rows, total))})
    titles = {name: title for name, title in TITLES.items() if not name.endswith("_coded")}
    columns, captions = comparison.grid(titles, chosen, partial(_stoi, sample_rate))
    spectrogram_figure(columns, captions, folder / "reconstructions.png", sample_rate=sample_rate)
    used = comparison.figures.get("codebook_usage", 0.0)
    title = f"recordings it never saw: {used:.0%} of the codes used"
    usage_figure(list(comparison.counts), folder / "codebook.png", title=title)
    originals, copies = ([wave[None] for wave in comparison.reconstructions[name]] for name in ("original", "vqkit"))
    write_sounds(folder / "samples", originals, copies, sample_rate)


def verdict(figures: Mapping[str, Any], baselines: Mapping[str, Baseline]) -> str:
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


def _stoi(sample_rate: int, original: Tensor, copy: Tensor) -> str:
    found = MEASURES["stoi"](sample_rate)(original, copy.clamp(-1, 1))
    return "" if found is None else f"STOI {found['stoi']:.2f}"

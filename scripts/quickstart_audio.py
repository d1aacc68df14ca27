"""The first run of a codec: train one on the speech in assets/, and measure it on speech it never heard.

    python scripts/quickstart_audio.py  # about three minutes of training on two CPU cores, then one of measuring

It runs `python -m trainers fit --config configs/audio/quickstart.yaml`, then compares the codec with k-means of MDCT
frames at the same bitrate and with Opus (and Codec2 and Speex, where they are installed) at the nearest, whatever the
outcome, and leaves everything in `runs/quickstart-audio/`.
"""

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from first_run import circumstances, train  # noqa: E402

from trainers.audio.comparison import Utterance, compare, draw, load_utterances, table, verdict  # noqa: E402
from trainers.audio.metrics import MEASURES, protocol  # noqa: E402
from trainers.audio.word_errors import Transcriber, obstacle  # noqa: E402
from vqkit import AudioTokenizer  # noqa: E402
from vqkit.saving.files import write_json  # noqa: E402

TRAIN, EVALUATION = ROOT / "assets/audio/train", ROOT / "assets/audio/eval"
CONFIG = ROOT / "configs/audio/quickstart.yaml"
SHOWN = ["si_sdr", "stoi", "estoi", "pesq", "mel_distance", "stft_distance"]
"""What a first run waits for; `scripts/compare_audio.py` measures everything."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="folder of the run folders")
    parser.add_argument("--steps", type=int, help="training steps, instead of the config's")
    parser.add_argument(
        "--max-minutes", type=float, default=5.0, help="stop training after this long, and record it as capped"
    )
    parser.add_argument("--kmeans-frames", type=int, default=40_000, help="training frames of the k-means baselines")
    parser.add_argument("--measures", nargs="+", default=SHOWN, choices=list(MEASURES), help="what is measured")
    arguments = parser.parse_args()
    folder = arguments.runs / "quickstart-audio"
    options = {"repeats": 8, "steps": arguments.steps, "max_minutes": arguments.max_minutes}
    training = train(CONFIG, folder, (TRAIN, EVALUATION), **options)
    tokenizer = AudioTokenizer.from_pretrained(folder / "tokenizer").eval()
    print("measuring on speech it never heard, and fitting k-means of MDCT frames beside it ...", flush=True)
    record = measured(arguments, tokenizer, folder)
    record["training"] = training | {"circumstances": circumstances("make quickstart-audio")}
    write_json(folder / "metrics.json", record)
    report(record, folder)


def measured(arguments: argparse.Namespace, tokenizer: AudioTokenizer, folder: Path) -> dict:
    """Compare and draw; the record but for how it was trained."""
    rate = tokenizer.sample_rate
    utterances = load_utterances(EVALUATION, rate)
    training = [utterance.wave for utterance in load_utterances(TRAIN, rate)]
    missing = obstacle()
    transcriber = None if missing else Transcriber()
    comparison = compare(
        tokenizer,
        utterances,
        training,
        measures=arguments.measures,
        kmeans_frames=arguments.kmeans_frames,
        transcriber=transcriber,
    )
    draw(comparison, folder, sample_rate=rate)
    facts = protocol(
        comparison.figures,
        sample_rate=rate,
        measures=arguments.measures,
        split=split(utterances),
        wer=f"not measured: {missing}" if transcriber is None else transcriber.protocol,
        precision="measured in float32",
    )
    return {**comparison.figures, **comparison.per_level, "baselines": comparison.baselines, "protocol": facts}


def split(utterances: list[Utterance]) -> str:
    """What was measured on."""
    return "assets/audio/eval, whole utterances: " + ", ".join(utterance.name for utterance in utterances)


def report(record: dict, folder: Path) -> None:
    """The table, and where to go from here."""
    print("\n" + table(record, record["baselines"]))
    print("\n" + verdict(record, record["baselines"]))
    training = record["training"]
    capped = ", CAPPED before the end" if training["capped"] else ""
    print(f"{training['steps']} steps in {training['seconds']:.0f} s{capped}, {training['precision']}, ", end="")
    print(f"{training['circumstances']}; {record['utterances']:.0f} utterances never trained on\n")
    shown = os.path.relpath(folder)
    for what, where in (
        ("listen to it", f"{shown}/samples/ (originals and reconstructions)"),
        ("look at it", f"{shown}/reconstructions.png and {shown}/codebook.png (figures: {shown}/metrics.json)"),
        ("train on your own recordings", f"{shown_command()} --data.root DIR --name mine"),
        ("swap the quantizer", "... --quantizer simvq  (or vq, ema, ibq, rotation: docs/quantizers.md)"),
        ("stream, measure, other recipes", "docs/audio.md, configs/audio/"),
        ("open the report", f"wandb sync {shown}/wandb/offline-run-*  (needs an account; until then it stays here)"),
    ):
        print(f"  {what + ':':34}{where}")


def shown_command() -> str:
    return ".venv/bin/python -m trainers fit --config configs/audio/quickstart.yaml"


if __name__ == "__main__":
    main()

"""Compare a trained codec with k-means of MDCT frames, Opus, Codec2 and Speex on recordings that it never heard.

    python scripts/compare_audio.py runs/speech --training data/speech/train --evaluation data/speech/validation

It writes `comparison.json`, `reconstructions.png`, `codebook.png` and `samples/` into the run folder, and prints the
table.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from compare import training_facts

from trainers.audio.comparison import compare, draw, load_utterances, table, verdict
from trainers.audio.metrics import MEASURES, protocol
from trainers.audio.word_errors import Transcriber, obstacle
from vqkit import AudioTokenizer
from vqkit.saving.files import write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder, as the trainer left it")
    parser.add_argument("--training", type=Path, required=True, help="folder of the recordings it was trained on")
    parser.add_argument("--evaluation", type=Path, required=True, help="folder of recordings it never heard")
    parser.add_argument("--utterances", type=int, help="the first so many of them; all by default")
    parser.add_argument("--kmeans-frames", type=int, default=40_000, help="training frames of the k-means baselines")
    parser.add_argument(
        "--measures", nargs="+", default=list(MEASURES), choices=list(MEASURES), help="what is measured; all by default"
    )
    parser.add_argument("--recognizer", type=Path, help="folder of a CTranslate2 Whisper model for word errors")
    parser.add_argument("--circumstances", default="", help="what the record should say of the machine and command")
    arguments = parser.parse_args()
    tokenizer = AudioTokenizer.from_pretrained(arguments.run / "tokenizer").eval()
    rate = tokenizer.sample_rate
    utterances = load_utterances(arguments.evaluation, rate)[: arguments.utterances]
    training = [utterance.wave for utterance in load_utterances(arguments.training, rate)]
    missing = obstacle(arguments.recognizer)
    transcriber = None if missing else Transcriber(arguments.recognizer)
    comparison = compare(
        tokenizer,
        utterances,
        training,
        measures=arguments.measures,
        kmeans_frames=arguments.kmeans_frames,
        transcriber=transcriber,
    )
    record = {
        **comparison.figures,
        **comparison.per_level,
        "baselines": comparison.baselines,
        "protocol": protocol(
            comparison.figures,
            sample_rate=rate,
            measures=arguments.measures,
            split=f"{arguments.evaluation}, {len(utterances)} whole utterances",
            wer=f"not measured: {missing}" if transcriber is None else transcriber.protocol,
            precision="measured in float32",
        ),
        "training": training_facts(arguments.run, arguments.circumstances),
    }
    write_json(arguments.run / "comparison.json", record)
    draw(comparison, arguments.run, sample_rate=rate)
    print(table(record, record["baselines"]))
    print("\n" + verdict(record, record["baselines"]))


if __name__ == "__main__":
    main()

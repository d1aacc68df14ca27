"""Compare a trained codec with k-means of MDCT frames, Opus, Codec2 and Speex on recordings that it never heard.

    python scripts/compare_audio.py runs/speech --training data/speech/train --evaluation data/speech/validation

It writes `comparison.json`, `reconstructions.png`, `codebook.png` and `samples/` into the run folder, and prints the
table.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from first_run import comparison_parser, training_facts

from trainers.audio.comparison import compare, draw, load_utterances, table, verdict
from trainers.audio.metrics import MEASURES, protocol
from trainers.audio.word_errors import Transcriber, obstacle
from vqkit import AudioTokenizer
from vqkit.saving.files import write_json


def main() -> None:
    parser = comparison_parser(__doc__, "recordings")
    parser.add_argument("--utterances", type=int, help="the first so many of them; all by default")
    parser.add_argument("--kmeans-frames", type=int, default=40_000, help="training frames of the k-means baselines")
    parser.add_argument(
        "--measures", nargs="+", default=list(MEASURES), choices=list(MEASURES), help="what is measured; all by default"
    )
    parser.add_argument("--recognizer", type=Path, help="folder of a CTranslate2 Whisper model for word errors")
    arguments = parser.parse_args()
    record = measured(
        arguments.run,
        (arguments.training, arguments.evaluation),
        training_facts(arguments.run, arguments.circumstances),
        measures=arguments.measures,
        kmeans_frames=arguments.kmeans_frames,
        split=f"{arguments.evaluation}, whole utterances",
        utterances=arguments.utterances,
        recognizer=arguments.recognizer,
    )
    write_json(arguments.run / "comparison.json", record)
    print(table(record, record["baselines"]))
    print("\n" + verdict(record, record["baselines"]))


def measured(
    run: Path,
    folders: tuple[Path, Path],
    training: dict[str, object],
    *,
    measures: Sequence[str],
    kmeans_frames: int,
    split: str,
    utterances: int | None = None,
    recognizer: Path | None = None,
) -> dict[str, Any]:
    """Compare the codec of a run, draw into its folder, and return the record.

    Args:
        run: folder of the run.
        folders: of the training recordings, and of those to measure.
        training: how it was trained.
        measures: names of `trainers.audio.metrics.MEASURES`.
        kmeans_frames: training frames of the k-means baselines.
        split: what was measured on, for the record.
        utterances: the first so many are measured; None is all.
        recognizer: folder of a CTranslate2 Whisper model; None takes the packaged one, if it is there.
    """
    tokenizer = AudioTokenizer.from_pretrained(run / "tokenizer").eval()
    rate = tokenizer.sample_rate
    heard = load_utterances(folders[1], rate)[:utterances]
    missing = obstacle(recognizer)
    transcriber = None if missing else Transcriber(recognizer)
    comparison = compare(
        tokenizer,
        heard,
        [utterance.wave for utterance in load_utterances(folders[0], rate)],
        measures=measures,
        kmeans_frames=kmeans_frames,
        transcriber=transcriber,
    )
    draw(comparison, run, sample_rate=rate)
    facts = protocol(
        comparison.figures,
        sample_rate=rate,
        measures=measures,
        split=split,
        wer=f"not measured: {missing}" if transcriber is None else transcriber.protocol,
        precision=f"trained in {training['precision']}, measured in float32",
    )
    return comparison.record(facts, training)


if __name__ == "__main__":
    main()

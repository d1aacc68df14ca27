"""Compare a trained run with k-means of raw patches, JPEG, WebP and AVIF on a folder of photographs that it never saw.

    python scripts/compare.py runs/photos --training data/photos/train --evaluation data/photos/validation

It writes `comparison.json`, `reconstructions.png` and `codebook.png` into the run folder, and prints the table.
"""

from pathlib import Path
from typing import Any

from first_run import comparison_parser, of_run, training_facts

from trainers.image.comparison import PREPROCESSING, compare, draw, load_photographs, table
from trainers.image.metrics import protocol
from vqkit.backbones.protocol import properties_of
from vqkit.saving.files import write_json


def main() -> None:
    parser = comparison_parser(__doc__, "photographs")
    parser.add_argument("--kmeans-patches", type=int, default=204_800, help="training patches of the k-means baseline")
    arguments = parser.parse_args()
    training = training_facts(arguments.run, arguments.circumstances)
    record = measured(
        arguments.run,
        (arguments.training, arguments.evaluation),
        training,
        kmeans_patches=arguments.kmeans_patches,
        split=f"{arguments.evaluation}, all photographs",
    )
    write_json(arguments.run / "comparison.json", record)
    print(table(record, record["baselines"]))


def measured(
    run: Path, folders: tuple[Path, Path], training: dict[str, object], *, kmeans_patches: int, split: str
) -> dict[str, Any]:
    """Compare the tokenizer of a run, draw into its folder, and return the record.

    Args:
        run: folder of the run.
        folders: of the training photographs, and of those to measure.
        training: how it was trained.
        kmeans_patches: training patches of the k-means baseline.
        split: what was measured on, for the record.
    """
    tokenizer = of_run(run)
    originals = load_photographs(folders[1], properties_of(tokenizer.encoder).downsampling_factor or 1)
    comparison = compare(tokenizer, originals, load_photographs(folders[0], 1), kmeans_patches=kmeans_patches)
    draw(comparison, tokenizer, run)
    precision = f"trained in {training['precision']}, measured in float32"
    facts = protocol(comparison.figures, split=split, preprocessing=PREPROCESSING, precision=precision)
    return comparison.record(facts, training)


if __name__ == "__main__":
    main()

"""Put the figures of runs into the documents: nothing there is typed by hand.

    python scripts/publish.py runs/quickstart      # after make quickstart
    python scripts/publish.py runs/photos-32       # after scripts/compare.py runs/photos-32 ...
    python scripts/publish.py runs/quickstart-audio  # after make quickstart-audio (compare_audio.py for others)
    python scripts/publish.py runs/photos_l2       # after python -m trainers test: the record of several runs' table
    python scripts/publish.py                      # only write the tables anew

It copies a run's figures, configuration, log and pictures into docs/results, and writes each table that stands between
`<!-- table NAME -->` and `<!-- end -->` in the documents: from docs/results/NAME.json, or from the code.
"""

import argparse
import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import adacode
import document_tables
import draw_parts
import gaussian_capacity
import importance
import ladder
import motion_codes
import phone_codes
import pursuit
import retrieval
import run_tables
import semantic
import semantic_id_methods
import suggest_codes
import twins
import uncertainty
import unheard
import yaml
from PIL import Image
from run_tables import RESULTS

from vqkit.saving.files import write_whole

ROOT = Path(__file__).resolve().parent.parent
GUIDES = (
    "capacity",
    "importance",
    "inspection",
    "other_uses",
    "quantizers",
    "regressions",
    "results",
    "surgery",
    "vectors",
)
DOCUMENTS = (ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in GUIDES))
RECIPES = ROOT / "docs/recipes.md"
"""Its table builds each recipe; a slow test compares it."""
TABLE = re.compile(r"(<!-- table (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
LOGGED = ["train/loss", "train/psnr", "validation/psnr", "validation/ssim", "codebook/usage", "codebook/perplexity"]
LOGGED_OF_CODECS = ["train/loss", "validation/stoi", "validation/mel_distance", "validation/si_sdr", *LOGGED[-2:]]
DISCRIMINATED = ["train/adversarial", "train/feature_matching", "train/discriminator_loss"]
DISCRIMINATED_IMAGES = ["train/adversarial", "train/discriminator_loss", "train/adaptive_weight", "train/lecam"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*", help="run folders")
    for run in parser.parse_args().runs:
        publish(run)
    try:
        pages = {document: rendered(document.read_text()) for document in (*DOCUMENTS, RECIPES)}
    except ValueError as error:
        sys.exit(f"publish: {error}; no document was written")
    for document, text in pages.items():
        write_whole(document, text.encode())
    write_whole(draw_parts.PICTURE, draw_parts.picture().encode())


def publish(run: Path) -> None:
    """Copy what a run measured, how it was configured, what it logged, and its pictures."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    figures = next((run / name for name in ("comparison.json", "metrics.json") if (run / name).is_file()), None)
    if figures is None:
        sys.exit(f"{run} holds neither comparison.json nor metrics.json: run scripts/compare.py first")
    # Where the run lay on the machine that trained it is nobody's matter.
    record = re.sub(r'("checkpoint": ")[^"]*/(?=[^/"]+/(?:checkpoints|tokenizer)/)', r"\1runs/", figures.read_text())
    write_whole(RESULTS / f"{run.name}.json", record.encode())
    if not (run / "config.yaml").is_file():
        return  # weights between those of runs
    config = re.sub(r"^runs: .*$", "runs: runs", (run / "config.yaml").read_text(), flags=re.MULTILINE)
    write_whole(RESULTS / f"{run.name}.yaml", config.encode())
    log = [sys.executable, str(ROOT / "scripts/export_log.py"), str(run), str(RESULTS / f"{run.name}.csv")]
    subprocess.run([*log, "--every", "50", "--columns", *logged(json.loads(figures.read_text()), run)], check=True)
    for name in ("reconstructions", "codebook"):
        with Image.open(run / f"{name}.png") as picture:
            picture = picture.convert("RGB")
            picture.thumbnail((1400, 1400))
            picture.save(RESULTS / f"{run.name}-{name}.jpg", quality=88)


def logged(record: dict, run: Path) -> list[str]:
    """Which columns of a run's log are published; those of the discriminators where they took part."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    task = config["model"]["init_args"]
    if "psnr" in record:
        objectives = [f"train/{objective['init_args']['name']}" for objective in task["objectives"]]
        starts = task["adversary"]["init_args"]["start_step"] if task["adversary"] else config["trainer"]["max_steps"]
        return LOGGED + objectives + DISCRIMINATED_IMAGES * (starts < config["trainer"]["max_steps"])
    return LOGGED_OF_CODECS + DISCRIMINATED * bool(task.get("adversary"))


def rendered(text: str) -> str:
    """A document with its tables written anew.

    Raises:
        ValueError: one cannot be written: what it is of is half measured, or not measured alike.
    """
    return TABLE.sub(lambda match: f"{match[1]}{written(match['name'])}\n{match[3]}", text)


def written(name: str) -> str:
    """The lines of a table."""
    try:
        return WRITERS.get(name, partial(run_tables.table, name))()
    except KeyError as lacking:
        raise ValueError(f"table {name}: its record has no {lacking}: measure to the end, then publish again") from None


SCRIPTS = (
    adacode,
    gaussian_capacity,
    ladder,
    motion_codes,
    phone_codes,
    pursuit,
    retrieval,
    semantic,
    suggest_codes,
    twins,
    uncertainty,
    unheard,
)
"""Each writes the table of its name."""
WRITERS = {
    "method-papers": document_tables.method_papers,
    "methods": document_tables.methods,
    "parts": document_tables.parts,
    "incompatible-parts": document_tables.incompatible_parts,
    "regressions": document_tables.regressions,
    "training-steps": document_tables.training_steps,
    "recipes": document_tables.recipes,
    "recipe-steps": document_tables.recipe_steps,
    "sound-recipes": document_tables.sound_recipes,
    "quickstarts": run_tables.quickstarts,
    "photos-objectives": partial(run_tables.objectives, run_tables.OBJECTIVES),
    "photos-tuned": partial(run_tables.objectives, run_tables.TUNED),
    "photos-detail": run_tables.detail,
    "photos-parted": partial(run_tables.objectives, run_tables.PARTED),
    "photos-artifacts": run_tables.artifacts,
    "photos-adaptation": run_tables.adaptation,
    "importance-layers": importance.layers_table,
    "importance-tokenizer": importance.tokenizer_table,
    "semantic-ids": semantic_id_methods.table,
    **{script.__name__.replace("_", "-"): script.table for script in SCRIPTS},
}
"""Tables that are not those of one record."""


if __name__ == "__main__":
    main()

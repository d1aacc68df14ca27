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
from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from the checkout, installed or not

import adacode
import document_tables
import draw_parts
import gaussian_capacity
import importance
import motion_codes
import phone_codes
import pursuit
import retrieval
import semantic
import semantic_id_methods
import suggest_codes
import twins
import uncertainty
import unheard
import yaml
from PIL import Image

import trainers.audio.comparison
import trainers.image.comparison
import trainers.run.table
from vqkit.saving.files import write_whole

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs/results"
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
    for document in (*DOCUMENTS, RECIPES):
        write_whole(document, rendered(document.read_text()).encode())
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
    """A document with its tables written anew."""
    return TABLE.sub(
        lambda match: f"{match[1]}{WRITERS.get(match['name'], partial(table, match['name']))()}\n{match[3]}", text
    )


def table(name: str) -> str:
    """The figures of docs/results/NAME.json as a Markdown table, with the circumstances below."""
    record = json.loads((RESULTS / f"{name}.json").read_text())
    return images_table(record) if "psnr" in record else codec_table(record)


def images_table(record: dict) -> str:
    """Of an image tokenizer beside its baselines."""
    titles = trainers.image.comparison.TITLES
    rows = {"vqkit": record} | {titles[name]: row for name, row in record["baselines"].items()}
    columns = {
        "PSNR": ("psnr", "{:.2f} dB"),
        "SSIM": ("ssim", "{:.3f}"),
        "bits per pixel": ("bpp", "{:.3f}"),
        "zero-order": ("entropy_bpp", "{:.3f}"),
        "coded": ("coded_bpp", "{:.3f}"),
        "usage": ("codebook_usage", "{:.1%}"),
        "perplexity": ("perplexity", "{:.0f}"),
    }
    lines, absent = titled_rows(rows, columns)
    training = record["training"]
    capped = ", stopped by the time limit" if training["capped"] else ""
    caption = (
        f"{record['images']:.0f} photographs that it never saw ({record['protocol']['split']}), "
        f"{record['protocol']['preprocessing']}; trained for {training['steps']} steps"
        f"{duration(training)}{capped}, {training['precision']}, seed 0; "
        f"{training['circumstances']}." + absent
    )
    return "\n".join([*lines, "", document_tables.wrapped([caption])])


def titled_rows(rows: dict[str, dict | str], columns: dict[str, tuple[str, str]]) -> tuple[list[str], str]:
    """The lines of a table, and in words which rows have no figures.

    Args:
        rows: figures by title, or why there are none.
        columns: figure and form of each by title; those of which no row has the figure are left out.
    """
    there = {title: row for title, row in rows.items() if isinstance(row, dict)}
    kept = {
        title: (figure, form)
        for title, (figure, form) in columns.items()
        if any(figure in row for row in there.values())
    }
    lines = [f"| | {' | '.join(kept)} |", "|---|" + "---:|" * len(kept)]
    for title, row in there.items():
        cells = [form.format(row[figure]) if figure in row else "-" for figure, form in kept.values()]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return lines, "".join(f" {title} {row}." for title, row in rows.items() if isinstance(row, str))


def duration(training: dict) -> str:
    """How long training took, where that is known: where trainer.max_time was set."""
    return f" in {training['seconds'] / 60:.1f} minutes" if training["seconds"] else ""


CODECS = trainers.audio.comparison.TITLES | {
    "mdct_kmeans": "k-means of MDCT frames (residual)",
    "mdct_split_kmeans": "k-means of MDCT bands (split)",
}


def codec_table(record: dict) -> str:
    """Of a codec beside its baselines."""
    rows = {"vqkit": record} | {CODECS[name]: row for name, row in record["baselines"].items()}
    columns = {
        "STOI": ("stoi", "{:.3f}"),
        "PESQ-WB": ("pesq", "{:.2f}"),
        "mel distance": ("mel_distance", "{:.3f}"),
        "SI-SDR": ("si_sdr", "{:.2f} dB"),
        "word errors": ("wer", "{:.0%}"),
        "kbit/s": ("kbps", "{:.2f}"),
        "zero-order": ("entropy_kbps", "{:.2f}"),
        "coded": ("coded_kbps", "{:.2f}"),
        "usage": ("codebook_usage", "{:.1%}"),
    }
    lines, absent = titled_rows(rows, columns)
    training, usage = record["training"], record.get("usage_per_level", [])
    capped = ", stopped by the time limit" if training["capped"] else ""
    levels = f" Usage of the levels, coarse first: {', '.join(f'{share:.0%}' for share in usage)}." if usage else ""
    heard = f"{record['utterances']} utterances that it never heard, {record['seconds']:.0f} s"
    caption = (
        f"{heard} ({record['protocol']['split']}); "
        f"trained for {training['steps']} steps{duration(training)}{capped}, "
        f"{training['precision']}, seed 0; {training['circumstances']}. Opus is counted without its container."
        f"{levels}{absent}"
    )
    return "\n".join([*lines, "", document_tables.wrapped([caption])])


OBJECTIVES = {
    "photos_l2": "L2",
    "photos_features": "L2 + features",
    "photos_adversarial": "L2 + features + PatchGAN",
}
"""Runs that differ in what they are trained by."""

TUNED = {
    "photos_tuned": "L2 + features",
    "photos_tuned_light": "with PatchGAN, weight 0.2",
    "photos_tuned_adversarial": "with PatchGAN, weight 0.8",
}
"""Runs that go on from the second of them, and differ likewise."""

PARTED = {
    "photos_features_again": "L2 + features",
    "photos_adversarial_blurred": "with PatchGAN behind a blur",
    "photos_interpolated": "a quarter of the way to PatchGAN",
}
"""Runs that are one until step 4,000, and weights between two."""

PERCEPTUAL = {
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "vgg_st_lpips": "ST-LPIPS, VGG-16",
    "dinov2_frechet_distance": "Fréchet distance, DINOv2-S",
    "dinov2_frechet_halves": "between halves of the originals",
    "dinov2_kernel_distance": "KID, DINOv2-S",
    "dinov2_kernel_halves": "between halves of the originals",
    "codebook_usage": "usage",
    "perplexity": "perplexity",
}
"""Rows of their table."""

ADAPTATION = {
    "vae": "VAE, continuous",
    "scales": "VQ, from scratch",
    "coda-334": "CODA, from that VAE",
    "coda": "CODA, longer",
}
"""Runs of a continuous autoencoder, of as many tokens that were discrete from the start, and of its adaptation."""

ADAPTED = {
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "tokens_per_image": "tokens per image",
    "bpp": "bits per pixel",
    "codebook_usage": "usage",
    "perplexity": "perplexity",
}
"""Rows of their table."""


def objectives(runs: Mapping[str, str], *, folder: Path = RESULTS) -> str:
    """Figures of runs side by side; `trainers table` refuses what was not measured alike.

    Args:
        runs: name and title of each.
        folder: of the records.

    Raises:
        ValueError: protocols differ, or the runs were not trained for equal steps.
    """
    files = {str(folder / f"{name}.json"): title for name, title in runs.items()}
    records = [json.loads(Path(file).read_text()) for file in files]
    steps = {record["protocol"]["step"] for record in records}
    if len(steps) > 1:
        raise ValueError(f"{', '.join(runs)} have {sorted(steps)} steps: train them equally long, and measure again")
    lines = side_by_side(files, PERCEPTUAL)
    protocol = records[0]["protocol"]
    caption = (
        f"{records[0]['images']} squares of {protocol['preprocessing']['resolution']} pixels, "
        f"{records[0]['bpp']:.3f} bits per pixel, {protocol['step']} steps, {protocol['precision']}, seed 0."
    )
    return "\n".join([*lines, "", document_tables.wrapped([caption])])


def side_by_side(files: Mapping[str, str], figures: Mapping[str, str]) -> list[str]:
    """Lines of a table, with a column for each record (title by file) and a row for each figure (title by key)."""
    _, line, *rows = trainers.run.table.table([*files, "--figures", *figures])
    titled = [f"| {title} |{row.split('|', 2)[2]}" for title, row in zip(figures.values(), rows, strict=True)]
    return [f"| | {' | '.join(files.values())} |", line, *titled]


def adaptation(*, folder: Path = RESULTS) -> str:
    """The runs of `ADAPTATION` as `trainers table` has them, with the steps that each took."""
    files = {str(folder / f"{name}.json"): title for name, title in ADAPTATION.items()}
    records = [json.loads(Path(file).read_text()) for file in files]
    steps = [str(record["protocol"]["step"]) for record in records]
    protocol = records[0]["protocol"]
    resolution = protocol["preprocessing"]["resolution"]
    caption = f"{records[0]['images']} squares, reduced to {resolution} pixels; {protocol['precision']}, seed 0."
    lines = [*side_by_side(files, ADAPTED), f"| steps of its own | {' | '.join(steps)} |"]
    return "\n".join([*lines, "", document_tables.wrapped([caption])])


def detail() -> str:
    """What scripts/exchange_detail.py measured."""
    record = json.loads((RESULTS / "photos-detail.json").read_text())
    lines = ["| | KID, DINOv2-S |", "|---|---:|"]
    lines += [f"| {name} | {distance:.2f} |" for name, distance in record["kernel_distance"].items()]
    lines += ["", f"| energy, of that of the originals | {' | '.join(record['energy'])} |", "|---|---:|---:|"]
    bands = zip(pairwise(record["bands"]), *record["energy"].values(), strict=True)
    lines += [f"| {low:.3g} to {high:.3g} cycles a pixel | {a:.0%} | {b:.0%} |" for (low, high), a, b in bands]
    caption = f"{record['images']} squares; blurred by a Gaussian with a deviation of {record['sigma']:g} px."
    return "\n".join([*lines, "", document_tables.wrapped([caption])])


def artifacts() -> str:
    """What scripts/measure_artifacts.py measured."""
    record = json.loads((RESULTS / "photos-artifacts.json").read_text())
    sets = record["sets"]
    rows = {
        "Fréchet distance, DINOv2-S": ("frechet_distance", "{:z.1f}"),
        "blurred": ("frechet_distance_blurred", "{:.1f}"),
        "KID, DINOv2-S": ("kernel_distance", "{:.2f}"),
        "blurred ": ("kernel_distance_blurred", "{:.2f}"),
        "steps between patches, over those within": ("grid", "{:.2f}"),
        "squares with coloured speckle": ("speckled", "{:.1%}"),
        "values at the ends of the range": ("saturated", "{:.2%}"),
        "values beyond [-1, 1]": ("outside", "{:.2%}"),
        "by how many levels of 255": ("excess", "{:.1f}"),
    }
    titles = {"originals": "originals", "photos_adversarial_late": "with PatchGAN"} | OBJECTIVES | PARTED
    lines = [f"| | {' | '.join(titles[name] for name in sets)} |", "|---|" + "---:|" * len(sets)]
    for title, (figure, form) in rows.items():
        cells = [form.format(values[figure]) if figure in values else "-" for values in sets.values()]
        lines.append(f"| {title.strip()} | {' | '.join(cells)} |")
    for number, (low, high) in enumerate(pairwise(record["bands"])):
        shares = " | ".join(f"{values['energy'][number]:.0%}" for values in sets.values())
        lines.append(f"| energy, {low:.3g} to {high:.3g} cycles a pixel | {shares} |")
    caption = f"{record['images']} squares; blurred by a Gaussian with a deviation of {record['sigma']:g} px."
    return "\n".join([*lines, "", document_tables.wrapped([caption])])


def quickstarts() -> str:
    """What both quickstarts reach, beside k-means at the same bits."""
    images, speech = (json.loads((RESULTS / f"{name}.json").read_text()) for name in ("quickstart", "quickstart-audio"))
    image_kmeans = images["baselines"]["patch_kmeans"]
    both = [speech["baselines"][name] for name in ("mdct_kmeans", "mdct_split_kmeans")]
    better = {"stoi": max, "pesq": max, "mel_distance": min}
    speech_kmeans = {key: choose(row[key] for row in both) for key, choose in better.items()}
    shown = [
        ("photographs, PSNR", images, image_kmeans, "psnr", "{:.2f} dB"),
        ("photographs, SSIM", images, image_kmeans, "ssim", "{:.3f}"),
        ("speech, STOI", speech, speech_kmeans, "stoi", "{:.3f}"),
        ("speech, PESQ-WB", speech, speech_kmeans, "pesq", "{:.2f}"),
        ("speech, mel distance (lower is better)", speech, speech_kmeans, "mel_distance", "{:.3f}"),
    ]
    lines = ["| | vqkit | k-means at the same bits |", "|---|---:|---:|"]
    lines += [f"| {title} | {form.format(a[key])} | {form.format(b[key])} |" for title, a, b, key, form in shown]
    trained = [
        f"{facts['steps']} steps{duration(facts)}, {facts['circumstances'].partition('; ')[0]}"
        for facts in (images["training"], speech["training"])
    ]
    coded = f" ({images['coded_bpp']:.3f} coded)" if "coded_bpp" in images else ""
    coded_speech = f" ({speech['coded_kbps']:.2f} coded)" if "coded_kbps" in speech else ""
    caption = (
        f"{images['images']:.0f} photographs at {images['bpp']:.3f} bits per pixel{coded} and {speech['utterances']} "
        f"utterances at {speech['kbps']:.0f} kbit/s{coded_speech}, none of them seen in training "
        f"({'; '.join(trained)}). Of speech there are two k-means, of residual levels and of bands: the better one in "
        "each row."
    )
    return "\n".join([*lines, "", document_tables.wrapped([caption])])


def ladder() -> str:
    """One tokenizer cut to smaller codebooks, beside the same without training and image files of the same bytes."""
    record = json.loads((RESULTS / "ladder.json").read_text())
    rows = record["rows"]
    lines = [
        "| codes | bits per pixel: nominal | zero-order | coded | PSNR, trained on | SSIM "
        "| cut at once: coded | PSNR | JPEG | WebP | AVIF |",
        "|---:|" + 10 * "---:|",
    ]
    for row, cut, *files in zip(*(rows[name] for name in ("trained", "cut", "jpeg", "webp", "avif")), strict=True):
        beside = " | ".join(f"{file['psnr']:.2f} dB, {file['coded_bpp']:.3f}" for file in files)
        lines.append(
            f"| {row['codes']:,} | {row['bpp']:.4f} | {row['entropy_bpp']:.3f} | {row['coded_bpp']:.3f} | "
            f"{row['psnr']:.2f} dB | {row['ssim']:.3f} | {cut['coded_bpp']:.3f} | {cut['psnr']:.2f} dB | {beside} |"
        )
    for row in rows["scratch"]:
        lines.append(
            f"| {row['codes']:,}, from the start, {row['steps']:,} steps | {row['bpp']:.4f} | {row['entropy_bpp']:.3f} "
            f"| {row['coded_bpp']:.3f} | {row['psnr']:.2f} dB | {row['ssim']:.3f} | - | - | - | - | - |"
        )
    facts, steps = record["protocol"], [row["steps"] for row in rows["trained"]]
    caption = (
        f"{facts['images']} photographs that it never saw ({facts['split']}), {facts['preprocessing']}; coded: "
        f"{facts['coded_bpp']}. JPEG, WebP and AVIF at the quality whose rate, which stands behind the "
        f"PSNR, is nearest to the coded one. {steps[0]:,} steps for "
        f"the base, {steps[1] - steps[0]:,} behind each cut, {steps[-1]:,} in all; one run, {record['processor']}."
    )
    return "\n".join([*lines, "", document_tables.wrapped([caption])])


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
    "quickstarts": quickstarts,
    "photos-objectives": partial(objectives, OBJECTIVES),
    "photos-tuned": partial(objectives, TUNED),
    "photos-detail": detail,
    "photos-parted": partial(objectives, PARTED),
    "photos-artifacts": artifacts,
    "photos-adaptation": adaptation,
    "ladder": ladder,
    "twins": twins.table,
    "phone-codes": phone_codes.table,
    "pursuit": pursuit.table,
    "semantic": semantic.table,
    "adacode": adacode.table,
    "gaussian-capacity": gaussian_capacity.table,
    "retrieval": retrieval.table,
    "uncertainty": uncertainty.table,
    "suggest-codes": suggest_codes.table,
    "importance-layers": importance.layers_table,
    "importance-tokenizer": importance.tokenizer_table,
    "semantic-ids": semantic_id_methods.table,
    "motion-codes": motion_codes.table,
    "unheard": unheard.table,
}
"""Tables that are not those of one record."""


if __name__ == "__main__":
    main()

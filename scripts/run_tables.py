"""Tables of runs: beside what they are compared with, and side by side, from the records in docs/results."""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path

from first_run import ROOT
from pages import captioned, table_lines

import trainers.audio.comparison
import trainers.image.comparison
import trainers.run.table

RESULTS = ROOT / "docs/results"
ABSENT = "-"


def table(name: str) -> str:
    """The figures of docs/results/NAME.json as a Markdown table, with the circumstances below."""
    record = json.loads((RESULTS / f"{name}.json").read_text())
    return images_table(record) if "psnr" in record else codec_table(record)


def images_table(record: dict) -> str:
    """Of an image tokenizer beside its baselines."""
    titles = trainers.image.comparison.TITLES
    rows = {"vqkit": record} | {titles[name]: row for name, row in record["baselines"].items()}
    columns = {
        "PSNR": "{psnr:.2f} dB",
        "SSIM": "{ssim:.3f}",
        "bits per pixel": "{bpp:.3f}",
        "zero-order": "{entropy_bpp:.3f}",
        "coded": "{coded_bpp:.3f}",
        "usage": "{codebook_usage:.1%}",
        "perplexity": "{perplexity:.0f}",
    }
    lines, absent = titled_rows(rows, columns)
    caption = (
        f"{record['images']:.0f} photographs that it never saw ({record['protocol']['split']}), "
        f"{record['protocol']['preprocessing']}; {trained(record['training'])}." + absent
    )
    return captioned(lines, caption)


def titled_rows(rows: dict[str, dict | str], columns: dict[str, str]) -> tuple[list[str], str]:
    """The lines of a table, and in words which rows have no figures.

    Args:
        rows: figures by title, or why there are none.
        columns: form of each by title; those of which no row has the figure are left out.
    """
    there = {title: row for title, row in rows.items() if isinstance(row, dict)}
    cells = {title: [cell(row, form) for form in columns.values()] for title, row in there.items()}
    kept = [any(own[number] != ABSENT for own in cells.values()) for number in range(len(columns))]
    lines = [[title, *itertools.compress(own, kept)] for title, own in cells.items()]
    absent = "".join(f" {title} {row}." for title, row in rows.items() if isinstance(row, str))
    return table_lines(["", *itertools.compress(columns, kept)], lines), absent


def cell(row: Mapping, form: str) -> str:
    """A figure of a row by its form; `ABSENT` where there is none."""
    try:
        return form.format_map(row)
    except KeyError:
        return ABSENT


def trained(training: dict) -> str:
    """How a run was trained."""
    capped = ", stopped by the time limit" if training["capped"] else ""
    steps = f"trained for {training['steps']} steps{duration(training)}{capped}"
    return f"{steps}, {training['precision']}, seed 0; {training['circumstances']}"


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
        "STOI": "{stoi:.3f}",
        "PESQ-WB": "{pesq:.2f}",
        "mel distance": "{mel_distance:.3f}",
        "SI-SDR": "{si_sdr:.2f} dB",
        "word errors": "{wer:.0%}",
        "kbit/s": "{kbps:.2f}",
        "zero-order": "{entropy_kbps:.2f}",
        "coded": "{coded_kbps:.2f}",
        "usage": "{codebook_usage:.1%}",
    }
    lines, absent = titled_rows(rows, columns)
    usage = record.get("usage_per_level", [])
    levels = f" Usage of the levels, coarse first: {', '.join(f'{share:.0%}' for share in usage)}." if usage else ""
    heard = f"{record['utterances']} utterances that it never heard, {record['seconds']:.0f} s"
    caption = (
        f"{heard} ({record['protocol']['split']}); {trained(record['training'])}. Opus is counted without its "
        f"container.{levels}{absent}"
    )
    return captioned(lines, caption)


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
    return captioned(lines, caption)


def side_by_side(files: Mapping[str, str], figures: Mapping[str, str]) -> list[str]:
    """Lines of a table, with a column for each record (title by file) and a row for each figure (title by key)."""
    _, line, *rows = trainers.run.table.table([*files, "--figures", *figures])
    titled = [f"| {title} |{row.split('|', 2)[2]}" for title, row in zip(figures.values(), rows, strict=True)]
    return [f"| | {' | '.join(files.values())} |", line, *titled]


def adaptation() -> str:
    """The runs of `ADAPTATION` as `trainers table` has them, with the steps that each took."""
    files = {str(RESULTS / f"{name}.json"): title for name, title in ADAPTATION.items()}
    records = [json.loads(Path(file).read_text()) for file in files]
    steps = [str(record["protocol"]["step"]) for record in records]
    protocol = records[0]["protocol"]
    resolution = protocol["preprocessing"]["resolution"]
    caption = f"{records[0]['images']} squares, reduced to {resolution} pixels; {protocol['precision']}, seed 0."
    lines = [*side_by_side(files, ADAPTED), f"| steps of its own | {' | '.join(steps)} |"]
    return captioned(lines, caption)


def detail() -> str:
    """What scripts/exchange_detail.py measured."""
    record = json.loads((RESULTS / "photos-detail.json").read_text())
    distances = [[name, f"{distance:.2f}"] for name, distance in record["kernel_distance"].items()]
    bands = zip(itertools.pairwise(record["bands"]), *record["energy"].values(), strict=True)
    energies = [[f"{low:.3g} to {high:.3g} cycles a pixel", f"{a:.0%}", f"{b:.0%}"] for (low, high), a, b in bands]
    heads = ["energy, of that of the originals", *record["energy"]]
    lines = [*table_lines(["", "KID, DINOv2-S"], distances), "", *table_lines(heads, energies)]
    caption = f"{record['images']} squares; blurred by a Gaussian with a deviation of {record['sigma']:g} px."
    return captioned(lines, caption)


def artifacts() -> str:
    """What scripts/measure_artifacts.py measured."""
    record = json.loads((RESULTS / "photos-artifacts.json").read_text())
    sets = record["sets"]
    forms = [
        ("Fréchet distance, DINOv2-S", "{frechet_distance:z.1f}"),
        ("blurred", "{frechet_distance_blurred:.1f}"),
        ("KID, DINOv2-S", "{kernel_distance:.2f}"),
        ("blurred", "{kernel_distance_blurred:.2f}"),
        ("steps between patches, over those within", "{grid:.2f}"),
        ("squares with coloured speckle", "{speckled:.1%}"),
        ("values at the ends of the range", "{saturated:.2%}"),
        ("values beyond [-1, 1]", "{outside:.2%}"),
        ("by how many levels of 255", "{excess:.1f}"),
    ]
    forms += [
        (f"energy, {low:.3g} to {high:.3g} cycles a pixel", f"{{energy[{number}]:.0%}}")
        for number, (low, high) in enumerate(itertools.pairwise(record["bands"]))
    ]
    titles = {"originals": "originals", "photos_adversarial_late": "with PatchGAN"} | OBJECTIVES | PARTED
    rows = [[title, *(cell(values, form) for values in sets.values())] for title, form in forms]
    lines = table_lines(["", *(titles[name] for name in sets)], rows)
    caption = f"{record['images']} squares; blurred by a Gaussian with a deviation of {record['sigma']:g} px."
    return captioned(lines, caption)


def quickstarts() -> str:
    """What both quickstarts reach, beside k-means at the same bits."""
    images, speech = (json.loads((RESULTS / f"{name}.json").read_text()) for name in ("quickstart", "quickstart-audio"))
    image_kmeans = images["baselines"]["patch_kmeans"]
    both = [speech["baselines"][name] for name in ("mdct_kmeans", "mdct_split_kmeans")]
    better = {"stoi": max, "pesq": max, "mel_distance": min}
    speech_kmeans = {key: choose(row[key] for row in both) for key, choose in better.items()}
    shown = [
        ("photographs, PSNR", images, image_kmeans, "{psnr:.2f} dB"),
        ("photographs, SSIM", images, image_kmeans, "{ssim:.3f}"),
        ("speech, STOI", speech, speech_kmeans, "{stoi:.3f}"),
        ("speech, PESQ-WB", speech, speech_kmeans, "{pesq:.2f}"),
        ("speech, mel distance (lower is better)", speech, speech_kmeans, "{mel_distance:.3f}"),
    ]
    rows = [[title, form.format_map(own), form.format_map(theirs)] for title, own, theirs, form in shown]
    lines = table_lines(["", "vqkit", "k-means at the same bits"], rows)
    training = [
        f"{facts['steps']} steps{duration(facts)}, {facts['circumstances'].partition('; ')[0]}"
        for facts in (images["training"], speech["training"])
    ]
    coded = f" ({images['coded_bpp']:.3f} coded)" if "coded_bpp" in images else ""
    coded_speech = f" ({speech['coded_kbps']:.2f} coded)" if "coded_kbps" in speech else ""
    caption = (
        f"{images['images']:.0f} photographs at {images['bpp']:.3f} bits per pixel{coded} and {speech['utterances']} "
        f"utterances at {speech['kbps']:.0f} kbit/s{coded_speech}, none of them seen in training "
        f"({'; '.join(training)}). Of speech there are two k-means, of residual levels and of bands: the better one in "
        "each row."
    )
    return captioned(lines, caption)

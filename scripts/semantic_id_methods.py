"""Semantic IDs of real vectors by several methods: what collides, what is lost, and which neighbours are kept.

    python scripts/vector_features.py digits data/vectors/digits.safetensors   # and pictures, speech: see there
    python scripts/semantic_id_methods.py data/vectors/digits.safetensors data/vectors/speech.safetensors
    python scripts/semantic_id_methods.py data/vectors/digits.safetensors --with-package .venv-semantic-id/bin/python

An RQ-VAE by `python -m trainers fit --config configs/vectors/semantic_ids.yaml`, with Sinkhorn's choice in training and
without, residual k-means and the balanced one, all of three levels of 64 codes; with `--with-package` the same by the
package semantic-id 0.2.5, in the Python that has it. All are fitted to the same nine tenths of the items.
`docs/results/semantic_ids.json` keeps the figures, `scripts/publish.py` writes the table of docs/vectors.md.
"""

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
import yaml
from first_run import ROOT, fit
from pages import captioned, formatted, table_lines
from records import load_record, machine, measuring_parser
from torch import Tensor

from trainers.run.bases import read_config
from trainers.vectors.data import VectorData
from trainers.vectors.ids import tuples_of
from trainers.vectors.kmeans import PLAIN, kmeans_tokenizer
from trainers.vectors.metrics import item_figures
from vqkit import CodebookUsage
from vqkit.clustering import balanced_kmeans
from vqkit.saving.files import write_json
from vqkit.tokenizers.vectors import CommonScale, VectorTokenizer

CONFIG = ROOT / "configs/vectors/semantic_ids.yaml"
RECORD = ROOT / "docs/results/semantic_ids.json"
LEVELS, CODES = 3, 64
TITLES = {
    "sinkhorn": "RQ-VAE, chosen together in training",
    "rqvae": "RQ-VAE, nearest codes",
    "kmeans": "residual k-means",
    "balanced": "balanced residual k-means",
    "package_kmeans": "semantic-id: `RQKMeans`",
    "package_balanced": "semantic-id: `RQKMeans`, constrained",
}
COLUMNS = ("explained", "IDs of one item", "largest group", "recall@10, decoded", "by prefix", "perplexity by level")
PACKAGE = """
import sys, time, joblib, numpy
from semantic_id import RQKMeans
folder, implementation = sys.argv[1:]
training, items = (numpy.load(f"{folder}/{name}.npy") for name in ("training", "items"))
start = time.monotonic()
with joblib.parallel_config(max_nbytes=None):  # larger arrays come read-only, which k-means-constrained refuses
    model = RQKMeans(n_levels=%d, n_clusters=%d, implementation=implementation, random_state=0).fit(training)
seconds = time.monotonic() - start
codes = model.encode(items)
numpy.save(f"{folder}/codes.npy", codes)
numpy.save(f"{folder}/decoded.npy", model.decode(codes))
print(seconds)
"""


def main() -> None:
    parser = measuring_parser(__doc__)
    parser.add_argument("sets", type=Path, nargs="+", help="files of scripts/vector_features.py")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/semantic_ids", help="folder of the run folders")
    parser.add_argument("--steps", type=int, default=1500, help="of each RQ-VAE; default: %(default)s")
    parser.add_argument("--methods", nargs="+", choices=TITLES, help="default: all that can run here")
    parser.add_argument("--with-package", type=Path, help="Python of an environment with semantic-id==0.2.5")
    asked = parser.parse_args()
    methods = asked.methods or [name for name in TITLES if asked.with_package or not name.startswith("package")]
    for path in asked.sets:
        for method in methods:
            print(f"{path.stem}: {TITLES[method]} ...", flush=True)
            made = measured(path, method, asked)
            print(json.dumps(made), flush=True)
            record = load_record(RECORD)
            record.setdefault(path.stem, {})[method] = made
            write_json(RECORD, record)


@torch.no_grad()
def measured(path: Path, method: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Fit a method to the training items of a set, and measure it on all items."""
    data = VectorData(str(path), column="vectors")
    training, held_out = data.sides
    table = data.table(path)
    items = table.batch(range(len(table)))
    facts: dict[str, Any] = {"machine": machine(asked.circumstances), "items": len(items)}
    facts |= {"dim": table.channels, "held_out": len(held_out), "levels": LEVELS, "codes": CODES}
    start = time.monotonic()
    if method.startswith("package"):
        constrained = "constrained" if method.endswith("balanced") else "kmeans"
        known = table.batch(training.samples)
        ids, decoded, seconds = by_package(known, items, constrained, asked.with_package)
    else:
        if method in ("kmeans", "balanced"):
            cluster = PLAIN if method == "kmeans" else balanced_kmeans
            tokenizer = kmeans_tokenizer(table.batch(training.samples), [CODES] * LEVELS, cluster=cluster)
        else:
            tokenizer = trained(path, method, table.channels, asked)
            facts |= {"steps": asked.steps}
        seconds = time.monotonic() - start
        ids = tuples_of(tokenizer, table)
        decoded = torch.cat([tokenizer.decode(part.squeeze(1)) for part in ids.split(4096)])
    scaling = CommonScale(table.channels)
    scaling.fit([table.batch(training.samples)])
    return facts | {"seconds": round(seconds)} | figures(scaling, items, decoded, ids, held_out.samples)


def figures(
    scaling: CommonScale, items: Tensor, decoded: Tensor, ids: Tensor, held_out: numpy.ndarray
) -> dict[str, Any]:
    """Collisions, neighbourhoods and the use of codes of all items; distortion of those that nothing was fitted to."""
    usage = CodebookUsage([CODES] * LEVELS)
    usage.update(ids)
    theirs, copies = scaling(items)[held_out], scaling(decoded)[held_out]
    lost = (theirs - copies).square().sum() / (theirs - theirs.mean(0)).square().sum()
    found = item_figures(scaling(items), scaling(decoded), ids)
    return {"explained": 1 - float(lost), **found, "perplexity": usage.compute()["perplexity_per_level"]}


def trained(path: Path, method: str, dim: int, asked: argparse.Namespace) -> VectorTokenizer:
    """An RQ-VAE by the command line."""
    config = read_config(CONFIG)
    arguments = config["model"]["init_args"]["tokenizer"]["init_args"]
    arguments["scaling"]["init_args"]["dim"] = dim
    arguments["encoder"]["init_args"]["in_channels"] = dim
    arguments["decoder"]["init_args"]["out_channels"] = dim
    stage = arguments["quantizer"]["init_args"]["stage"]["init_args"]
    stage["codebook_size"] = CODES
    if method == "rqvae":
        del stage["search"]
    config["model"]["init_args"]["pretraining_steps"] = asked.steps // 4
    config["trainer"]["max_steps"] = asked.steps
    name = f"{path.stem}-{method}"
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "config.yaml"
        written.write_text(yaml.safe_dump(config))
        options = {"config": written, "data.root": path.resolve(), "data.column": "vectors", "name": name}
        fit(options | {"runs": asked.runs.resolve(), "validation.every_n_steps": asked.steps})
    return VectorTokenizer.from_pretrained(asked.runs / name / "tokenizer")


def by_package(training: Tensor, items: Tensor, implementation: str, python: Path) -> tuple[Tensor, Tensor, float]:
    """IDs and decoded vectors of the package, and the seconds that its fit took."""
    with tempfile.TemporaryDirectory() as folder:
        numpy.save(f"{folder}/training.npy", training.numpy())
        numpy.save(f"{folder}/items.npy", items.numpy())
        words = [str(python), "-c", PACKAGE % (LEVELS, CODES), folder, implementation]
        said = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
        ids, decoded = (torch.from_numpy(numpy.load(f"{folder}/{name}.npy")) for name in ("codes", "decoded"))
        return ids.long(), decoded.float(), float(said.split()[-1])


def table() -> str:
    """Lines of Markdown: a table for each set."""
    record = json.loads(RECORD.read_text())
    lines: list[str] = []
    for name, rows in record.items():
        first = next(iter(rows.values()))
        lines += [f"**{name}**: {first['items']:,} items of {first['dim']} dimensions", ""]
        found = [_row(title, rows[method]) for method, title in TITLES.items() if method in rows]
        lines += [*table_lines(["", *COLUMNS], found), ""]
    machines = {row["machine"] for rows in record.values() for row in rows.values()}
    caption = (
        f"{LEVELS} levels of {CODES} codes, seed 0. Explained: of a tenth of the items that nothing was fitted to, but "
        "others of the same recording or photograph were; all else of all items. An RQ-VAE trains a quarter of its "
        "steps without quantization; semantic-id is 0.2.5 with its defaults, ten starts of k-means among them. "
        f"{'; '.join(sorted(machines))}; `python scripts/semantic_id_methods.py` with the files of "
        "`scripts/vector_features.py`."
    )
    return captioned(lines[:-1], caption)


def _row(title: str, row: Mapping[str, Any]) -> list[str]:
    steps = f", {row['steps']} steps" if "steps" in row else ""
    forms = ("{explained:.1%}", "{unique:.1%}", "{largest_group}", "{recall:.1%}", "{prefix_recall:.1%}")
    return [title + steps, *formatted(row, forms), ", ".join(f"{value:.0f}" for value in row["perplexity"])]


if __name__ == "__main__":
    main()

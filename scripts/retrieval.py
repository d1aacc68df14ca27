"""Retrieval by codes of few bits: infomax codes beside LFQ without labels and product quantization, on Fashion-MNIST.

    python scripts/fetch_data.py fashion-mnist --destination data/fashion-mnist
    python scripts/retrieval.py                       # some minutes of one thread

A network of three linear layers learns from six of the ten classes. Pictures of its test set are the queries, those
of its training set are stored as codes: of the six classes, and then of the four that the network never saw.
`docs/results/retrieval.json` keeps the figures of all seeds, each of which leaves other classes out.
"""

import gzip
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from first_run import ROOT
from pages import captioned, table_lines
from records import machine, measuring_parser
from torch import Tensor, nn

from vqkit import LFQ, BitEntropy, Commitment, GroupedQuantizer, Quantizer
from vqkit.functional import unit
from vqkit.methods.infomax import code_scores, digit_dependence, infomax_loss, storage_bits
from vqkit.saving.files import write_json

RECORD = ROOT / "docs/results/retrieval.json"
DATA = ROOT / "data/fashion-mnist"
CLASSES, SEEN = 10, 6
SYMBOLS = 16
BITS = (8, 16, 32)
FEATURES = 256
STEPS, BATCH, LEARNING_RATE = 400, 512, 1e-3
QUERIES, STORED = 1000, 6000


@dataclass(frozen=True)
class Pictures:
    """Of a split.

    Attributes:
        rows: (N, 784) in [0, 1].
        labels: (N,) int64.
    """

    rows: Tensor
    labels: Tensor

    def of(self, classes: Tensor) -> "Pictures":
        """Those of some classes, whose labels are numbered anew."""
        numbers = torch.full((CLASSES,), -1)
        numbers[classes] = torch.arange(len(classes))
        labels = numbers[self.labels]
        return Pictures(self.rows[labels >= 0], labels[labels >= 0])

    def drawn(self, count: int, generator: torch.Generator) -> "Pictures":
        """So many of them, in random order: that decides between equal scores."""
        chosen = torch.randperm(len(self.rows), generator=generator)[:count]
        return Pictures(self.rows[chosen], self.labels[chosen])


Scores = Callable[[Tensor, Tensor], Tensor]
"""How near each stored picture is to each query, (Q, S), from the rows (Q, 784) and (S, 784) of both."""


def main() -> None:
    parser = measuring_parser(__doc__)
    parser.add_argument("--data", type=Path, default=DATA, help="folder that scripts/fetch_data.py made")
    parser.add_argument("--seeds", type=int, default=3, help="how often all of it is done; default: %(default)s")
    arguments = parser.parse_args()
    train, test = read(arguments.data, "train"), read(arguments.data, "validation")
    runs = [run(train, test, seed) for seed in range(arguments.seeds)]
    rows = [
        {"title": row["title"], "bits": row["bits"]}
        | {part: summary([one[number][part] for one in runs]) for part in ("seen", "unseen")}
        for number, row in enumerate(runs[0])
    ]
    facts = {"seeds": arguments.seeds, "steps": STEPS, "batch": BATCH, "queries": QUERIES, "stored": STORED}
    write_json(RECORD, {"rows": rows, "protocol": facts | {"machine": machine(arguments.circumstances)}})
    print(table())


def read(folder: Path, split: str) -> Pictures:
    """The pictures and labels of a split.

    Raises:
        SystemExit: they are not there.
    """
    images, labels = (
        next(folder.glob(f"{split}/*/*-{content}-ubyte.gz"), None) for content in ("images-idx3", "labels-idx1")
    )
    if images is None or labels is None:
        raise SystemExit(f"{folder} has no {split} pictures: run scripts/fetch_data.py fashion-mnist first")
    pixels = np.frombuffer(gzip.decompress(images.read_bytes()), np.uint8, offset=16).reshape(-1, 28 * 28)
    numbers = np.frombuffer(gzip.decompress(labels.read_bytes()), np.uint8, offset=8)
    return Pictures(torch.from_numpy(pixels.astype(np.float32) / 255), torch.from_numpy(numbers.astype(np.int64)))


def run(train: Pictures, test: Pictures, seed: int) -> list[dict[str, Any]]:
    """Train and measure every row with one choice of classes."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    order = torch.randperm(CLASSES, generator=generator)
    parts = {"seen": order[:SEEN], "unseen": order[SEEN:]}
    pairs = {
        part: (test.of(classes).drawn(QUERIES, generator), train.of(classes).drawn(STORED, generator))
        for part, classes in parts.items()
    }
    rows = []
    for title, bits, scores in systems(train.of(parts["seen"])):
        measured = {part: measure(scores, *pair) for part, pair in pairs.items()}
        rows.append({"title": title, "bits": bits} | measured)
        print(f"seed {seed}: {title}, {bits:.1f} bits: {measured}", flush=True)
    return rows


# ------------------------------------------------------------------ what is compared


def systems(seen: Pictures) -> Iterator[tuple[str, float, Scores]]:
    """Title, bits of a stored picture, and scores of each row of the table."""
    for title, weight in (("infomax and independence (DIMCO)", 1.0), ("infomax alone", 0.0)):
        for bits in BITS:
            digits = round(bits / storage_bits(1, SYMBOLS))
            yield title, bits, infomax_codes(seen, digits, weight)
    for bits in BITS:
        yield "LFQ autoencoder, without labels", bits, lfq_codes(seen, bits)
    network = classifier(seen)
    body = network[:-1]
    for bits in BITS:
        yield "cross-entropy, features by product quantization", bits, product_codes(body, seen, bits // 8)
    yield "cross-entropy, the class alone", storage_bits(1, SEEN), most_probable_class(network)
    yield "cross-entropy, features as they are", 32 * FEATURES, lambda a, b: unit(body(a)) @ unit(body(b)).T
    yield "pixels as they are", 8 * seen.rows.shape[1], lambda a, b: -torch.cdist(a, b)


def trunk() -> nn.Sequential:
    """(N, 784) to (N, FEATURES)."""
    return nn.Sequential(nn.Linear(28 * 28, 256), nn.ReLU(), nn.Linear(256, FEATURES), nn.ReLU())


def fit(network: nn.Module, pictures: Pictures, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Equal steps of AdamW with a falling rate, for all."""
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS)
    for _ in range(STEPS):
        chosen = torch.randint(len(pictures.rows), (BATCH,))
        optimizer.zero_grad()
        loss(pictures.rows[chosen], pictures.labels[chosen]).backward()
        optimizer.step()
        schedule.step()


def infomax_codes(seen: Pictures, digits: int, weight: float) -> Scores:
    """DIMCO: scores are log-probabilities of stored codes."""
    network = nn.Sequential(trunk(), nn.Linear(FEATURES, digits * SYMBOLS), nn.Unflatten(1, (digits, SYMBOLS)))

    def loss(rows: Tensor, labels: Tensor) -> Tensor:
        probabilities = network(rows).softmax(-1)
        information = infomax_loss(probabilities, labels, num_classes=SEEN)
        return information + weight * digit_dependence(probabilities) if weight else information

    fit(network, seen, loss)
    return lambda queries, stored: code_scores(network(queries).log_softmax(-1), network(stored).argmax(-1))


def lfq_codes(seen: Pictures, bits: int) -> Scores:
    """Bits of an autoencoder; scores are inner products of a query's latents with stored codes."""
    encoder, decoder = nn.Sequential(trunk(), nn.Linear(FEATURES, bits)), nn.Sequential(nn.Linear(bits, FEATURES))
    decoder.extend([nn.ReLU(), nn.Linear(FEATURES, 256), nn.ReLU(), nn.Linear(256, 28 * 28)])
    quantizer = LFQ(bits, losses=[Commitment(0.25), BitEntropy(0.1, temperature=1.0)])
    network = nn.ModuleList([encoder, quantizer, decoder]).train()

    def loss(rows: Tensor, labels: Tensor) -> Tensor:
        output = quantizer(encoder(rows))
        return F.mse_loss(decoder(output.quantized), rows) * 28 * 28 / 10 + output.loss

    fit(network, seen, loss)
    network.eval()
    return lambda queries, stored: encoder(queries) @ quantizer.decode(quantizer.encode(encoder(stored))).T


def classifier(seen: Pictures) -> nn.Sequential:
    """Trained by cross-entropy."""
    network = nn.Sequential(*trunk(), nn.Linear(FEATURES, SEEN))
    fit(network, seen, lambda rows, labels: F.cross_entropy(network(rows), labels))
    return network


def product_codes(body: nn.Module, seen: Pictures, groups: int) -> Scores:
    """Features of unit length in groups of 256 means each; scores are distances of a query from stored codes."""
    group = partial(Quantizer, "vq", dim=FEATURES // groups, codebook_size=256)
    quantizer = GroupedQuantizer(group, num_groups=groups).eval()
    quantizer.initialize([unit(body(seen.rows[:10_000]))])
    return lambda queries, stored: (
        -torch.cdist(unit(body(queries)), quantizer.decode(quantizer.encode(unit(body(stored)))))
    )


def most_probable_class(network: nn.Module) -> Scores:
    """One digit, whose symbols are the classes: what is stored is the most probable one."""
    return lambda queries, stored: code_scores(
        network(queries).log_softmax(-1)[:, None], network(stored).argmax(-1, keepdim=True)
    )


# ------------------------------------------------------------------ what is measured


@torch.no_grad()
def measure(scores: Scores, queries: Pictures, stored: Pictures) -> dict[str, float]:
    """Of the ranking of all stored pictures for each query.

    Returns:
        map: mean average precision.
        recall_1, recall_10: share of the queries with one of their class among the first 1 or 10.
    """
    order = scores(queries.rows, stored.rows).argsort(dim=1, descending=True, stable=True)
    relevant = stored.labels[order] == queries.labels[:, None]
    precision = relevant.cumsum(1) / torch.arange(1, relevant.shape[1] + 1)
    average = (precision * relevant).sum(1) / relevant.sum(1)
    first = {f"recall_{count}": float(relevant[:, :count].any(1).float().mean()) for count in (1, 10)}
    return {"map": float(average.mean())} | first


def summary(runs: list[dict[str, float]]) -> dict[str, dict[str, Any]]:
    """Each figure for all seeds, their mean, and how far they lie apart: seeds differ more than rows of one seed."""
    figures = {name: [one[name] for one in runs] for name in runs[0]}
    return {
        name: {
            "mean": statistics.fmean(found),
            "deviation": statistics.stdev(found) if len(found) > 1 else 0.0,
            "each": found,
        }
        for name, found in figures.items()
    }


# ------------------------------------------------------------------ the table


def table() -> str:
    """Lines of Markdown."""
    record = json.loads(RECORD.read_text())
    heads = ["", "bits"]
    heads += [f"{part}: {figure}" for part in ("seen", "unseen") for figure in ("mAP", "first", "first 10")]
    rows = []
    for row in record["rows"]:
        cells = [row["title"], f"{row['bits']:,.1f}".removesuffix(".0")]
        for part in ("seen", "unseen"):
            precision = row[part]["map"]
            cells.append(f"{precision['mean']:.3f} ± {precision['deviation']:.3f}")
            cells += [f"{row[part][name]['mean']:.1%}" for name in ("recall_1", "recall_10")]
        rows.append(cells)
    return captioned(table_lines(heads, rows), caption(record["protocol"]))


def caption(facts: dict[str, Any]) -> str:
    """How it was measured."""
    return (
        f"Fashion-MNIST; {facts['queries']:,} queries of its test set, {facts['stored']:,} stored pictures of its "
        f"training set; {SEEN} of {CLASSES} classes train, the other {CLASSES - SEEN} are unseen; mean and deviation "
        f"of {facts['seeds']} seeds, each with other classes; first, first 10: queries with one of their class among "
        f"these; {facts['steps']} steps of {facts['batch']} pictures; "
        f"{facts['machine']}; `python scripts/retrieval.py`."
    )


if __name__ == "__main__":
    main()

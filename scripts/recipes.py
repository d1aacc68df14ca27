"""Recipes: configurations of published image tokenizers, which say at their heads whose they are and what differs.

    python scripts/recipes.py              # parameters by part, and bits, of each
    python scripts/recipes.py --step NAME  # one training step at full size, batch 1; prints its peak memory in MiB
    python scripts/recipes.py --step NAME --record  # the same, kept for the table, with the machine

The head of such a file is a comment: what it is, then `Source:`, `Published:` (the figure that the source states, with
its protocol, or "not stated") and `Differs:`, each at the beginning of a line. `docs/recipes.md` has their table.
"""

import argparse
import hashlib
import json
import math
import re
import resource
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy
import torch
import yaml
from first_run import ROOT, fit
from jsonargparse import ArgumentParser
from PIL import Image
from records import load_record, machine
from safetensors.torch import save_file
from torch import nn

from trainers.core.discriminator import Discriminator
from trainers.run.bases import read_config
from vqkit import Quantizer, Tokenizer
from vqkit.backbones.maskgit import MaskGITDecoder2d, MaskGITEncoder2d
from vqkit.parts.codebooks import Codebook
from vqkit.saving.config import weights_follow
from vqkit.saving.files import write_json

FOLDER = ROOT / "configs/image"
RECORD = ROOT / "docs/results/recipe_steps.json"
SECTIONS = ("Source", "Published", "Differs")
FEATURES = "trainers.audio.FeatureDiscriminator"
"""A discriminator that looks through a network of others."""
GAIN = re.compile(r"parametrizations\.weight\.original0$")
"""What weight norm adds to a convolution, which has as many degrees of freedom without."""
CODE_VECTORS = ("vectors", "base")
"""Buffers of codebooks whose code vectors are no parameters: averages, and those that are frozen."""
WEIGHTS = {
    "trainers.image.VGG16LPIPS": "backbone",
    "trainers.image.TorchvisionNetwork": "weights",
    "trainers.image.TimmNetwork": "weights",
    "trainers.image.DINOv2Small": "weights",
}
"""Argument that says where weights come from, of what would download or read some."""


@dataclass(frozen=True)
class Recipe:
    """A configuration of a published tokenizer.

    Attributes:
        path: of the file.
    """

    path: Path

    @property
    def name(self) -> str:
        """By which it is known."""
        return self.path.stem

    @cached_property
    def head(self) -> dict[str, str]:
        """What the comment at the beginning of the file says, by section; what it is stands under ""."""
        lines = []
        for line in self.path.read_text().splitlines():
            if not line.startswith("#"):
                break
            lines.append(line.removeprefix("#").strip())
        sections = {"": ""}
        section = ""
        for line in lines:
            if found := re.match(rf"({'|'.join(SECTIONS)}): ", line):
                section, line = found[1], line[found.end() :]
            sections[section] = f"{sections.get(section, '')} {line}".strip()
        return sections

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration, laid over its base."""
        return read_config(self.path)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, on the meta device."""
        made = built(Tokenizer, self.config["model"]["init_args"]["tokenizer"])
        assert isinstance(made, Tokenizer)
        return made

    @cached_property
    def discriminators(self) -> nn.ModuleList:
        """Those of the adversary, on the meta device, but for one that looks through a network of others."""
        adversary = self.config["model"]["init_args"].get("adversary") or {"init_args": {"discriminators": []}}
        own = [each for each in adversary["init_args"]["discriminators"] if each["class_path"] != FEATURES]
        return nn.ModuleList(built(list[Discriminator], own))

    def parameters(self) -> dict[str, int]:
        """Numbers that training moves or keeps, by part, with weight norm folded: code vectors in buffers too.

        Neither frozen networks that a discriminator looks through are counted nor heads of objectives and teachers.
        """
        counts = {name: _number(part) for name, part in self.tokenizer.named_children()}
        if len(self.discriminators):
            counts["discriminators"] = _number(self.discriminators)
        return counts

    def state_bytes(self) -> int:
        """What a training keeps beside activations: weights, gradients, two moments, and averages where it has them.

        Parts that are frozen have weights and averages alone. Networks that objectives and discriminators look through
        are not counted, and neither is the teacher.
        """
        numbers = self.parameters()
        callbacks = self.config["trainer"].get("callbacks") or []
        averaged = any(callback["class_path"] == "trainers.callbacks.WeightEMA" for callback in callbacks)
        frozen = sum(numbers[part] for part in self.config["model"]["init_args"].get("freeze", []))
        judges = numbers.pop("discriminators", 0)
        weights = sum(numbers.values())
        return 4 * (4 * (weights + judges) - 3 * frozen + weights * averaged)

    def key(self) -> str:
        """A hash of the configuration."""
        return hashlib.sha256(json.dumps(self.config, sort_keys=True).encode()).hexdigest()[:16]

    def taken(self) -> dict[str, Any] | None:
        """What is recorded of a step with this configuration; None where none was taken."""
        found = steps().get(self.name)
        return found if found and found["key"] == self.key() else None

    def bits(self) -> float:
        """Of the tokens of an image of the size that the recipe trains with."""
        side = self.config["data"]["init_args"]["resolution"]
        with torch.no_grad():
            indices = self.tokenizer.eval().encode(torch.empty(1, 3, side, side, device="meta"))
        sizes = self.tokenizer.quantizer.level_sizes
        return indices.numel() * sum(map(math.log2, sizes)) / len(sizes)


Kind = TypeVar("Kind", bound=Recipe)


def recipes_in(folder: Path, kind: type[Kind]) -> dict[str, Kind]:
    """All of a folder by name: the configurations whose heads say what is published."""
    found = (kind(path) for path in sorted(folder.glob("*.yaml")))
    return {recipe.name: recipe for recipe in found if "Published" in recipe.head}


recipes = partial(recipes_in, FOLDER, Recipe)


def steps() -> dict[str, dict[str, Any]]:
    """What is recorded of steps, by recipe."""
    return load_record(RECORD)


def without_files(config: Any, folder: Path | None = None) -> Any:
    """A configuration that needs no weights, features and teacher of others: random ones take their place.

    Args:
        config: of any nesting; left as it is.
        folder: for files of features and of a teacher at random, of the sizes that the configuration says; None leaves
            these as they are.
    """
    if isinstance(config, list):
        return [without_files(item, folder) for item in config]
    if not isinstance(config, Mapping):
        return config
    made = {key: without_files(value, folder) for key, value in config.items()}
    if argument := WEIGHTS.get(made.get("class_path", "")):
        made["init_args"] = {**made.get("init_args", {}), argument: "trainers.image.RandomWeights"}
    if folder is not None and isinstance(made.get("teacher"), str):
        made["teacher"] = _teacher(made["tokenizer"]["init_args"]["decoder"]["init_args"]["head"]["init_args"], folder)
    codebook = (made.get("init_args") or {}).get("codebook")
    if folder is not None and isinstance(codebook, Mapping) and "base_path" in codebook.get("init_args", {}):
        path = folder / "features.safetensors"
        sizes = made["init_args"]["codebook_size"], codebook["init_args"]["base_dim"]
        save_file({"vectors": torch.randn(*sizes)}, path)
        codebook["init_args"]["base_path"] = str(path)
    return made


def _teacher(head: Mapping[str, Any], folder: Path) -> str:
    """A saved tokenizer whose codes and decoder are those that a head predicts and draws by."""
    sizes = head["pixels"]["init_args"]
    quantizer = Quantizer("vq", dim=sizes["dim"], codebook_size=head["codebook_size"], channel_dim=1)
    Tokenizer(MaskGITEncoder2d(**sizes), quantizer, MaskGITDecoder2d(**sizes)).save_pretrained(folder / "teacher")
    return str(folder / "teacher")


def step(recipe: Recipe) -> float:
    """Take one training step at full size, with a batch of one, in 32 bits; the peak memory of that process in MiB.

    The adversary takes part in it, whenever it would start; frozen networks have random weights.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = without_files(recipe.config, folder)
        task, data = config["model"]["init_args"], config["data"]["init_args"]
        task["initialization_samples"] = 256
        task.pop("pretraining_steps", None)
        if task.get("adversary"):
            task["adversary"]["init_args"]["start_step"] = 0
        data |= {"root": str(folder / "pictures"), "validation_root": None, "batch_size": 1, "num_workers": 0}
        config["trainer"] = {"fast_dev_run": 1, "accelerator": "cpu"}
        (folder / "pictures").mkdir()
        for number in range(2):
            pixels = numpy.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=numpy.uint8)
            Image.fromarray(pixels).resize((512, 512)).save(folder / f"pictures/{number}.png")
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        fit({"config": folder / "config.yaml", "runs": name})
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def built(annotation: Any, config: Any) -> Any:
    """Parts of a configuration, on the meta device: of no weights, whatever their size."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--part", type=annotation)
    with torch.device("meta"), weights_follow():  # files of features are not read then
        return parser.instantiate(parser.parse_object({"part": without_files(config)})).part


def _number(part: nn.Module) -> int:
    parameters = sum(parameter.numel() for name, parameter in part.named_parameters() if not GAIN.search(name))
    codebooks = [module for module in part.modules() if isinstance(module, Codebook)]
    kept = [buffer for book in codebooks for name, buffer in book.named_buffers() if name in CODE_VECTORS]
    return parameters + sum(buffer.numel() for buffer in kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", choices=recipes(), metavar="NAME", help="take a step with this one")
    parser.add_argument("--record", action="store_true", help="keep what the step took")
    arguments = parser.parse_args()
    if arguments.step:
        recipe = recipes()[arguments.step]
        peak = round(step(recipe))
        print(f"{peak} MiB")
        if arguments.record:
            made = {recipe.name: {"key": recipe.key(), "peak_mib": peak, "batch": 1, "machine": machine()}}
            write_json(RECORD, dict(sorted((steps() | made).items())))
        return
    for recipe in recipes().values():
        parts = ", ".join(f"{part} {number:,}" for part, number in recipe.parameters().items())
        print(f"{recipe.name}: {parts}; {recipe.bits():g} bits")


if __name__ == "__main__":
    main()

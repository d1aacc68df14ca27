"""Recipes of sound: configurations of published codecs, with heads as those of pictures have them (`recipes.py`).

python scripts/sound_recipes.py  # parameters by part, and kbit/s, of each
"""

import re
from collections.abc import Iterator
from functools import cached_property

from first_run import ROOT
from recipes import CODE_VECTORS, Recipe, built
from torch import Tensor, nn

from trainers.core.discriminator import Discriminator
from vqkit import AudioTokenizer
from vqkit.parts.codebooks import Codebook

FOLDER = ROOT / "configs/audio"
GAIN = re.compile(r"parametrizations\.weight\.original0$")
"""What weight norm adds to a convolution, which has as many degrees of freedom without."""
FEATURES = "trainers.audio.FeatureDiscriminator"
"""What looks through a network of others."""


class SoundRecipe(Recipe):
    """A configuration of a published codec."""

    @cached_property
    def tokenizer(self) -> AudioTokenizer:
        """The tokenizer, on the meta device."""
        made = super().tokenizer
        assert isinstance(made, AudioTokenizer)
        return made

    @cached_property
    def discriminators(self) -> nn.ModuleList:
        """Those of the adversary, on the meta device, but for one that looks through a network of others."""
        adversary = self.config["model"]["init_args"].get("adversary") or {"init_args": {"discriminators": []}}
        own = [each for each in adversary["init_args"]["discriminators"] if each["class_path"] != FEATURES]
        return nn.ModuleList(built(list[Discriminator], own))

    def parameters(self) -> dict[str, int]:
        """Numbers that training moves or keeps, by part, with weight norm folded: code vectors in buffers too.

        Heads of objectives are not counted, and neither are their teachers.
        """
        parts = dict(self.tokenizer.named_children())
        if len(self.discriminators):
            parts["discriminators"] = self.discriminators
        return {name: sum(tensor.numel() for tensor in _kept(part)) for name, part in parts.items()}

    def bits(self) -> float:
        """Of a second of sound, all levels."""
        return 1000 * self.tokenizer.kbps


def _kept(part: nn.Module) -> Iterator[Tensor]:
    yield from (parameter for name, parameter in part.named_parameters() if not GAIN.search(name))
    for book in (module for module in part.modules() if isinstance(module, Codebook)):
        yield from (buffer for name, buffer in book.named_buffers() if name in CODE_VECTORS)


def sound_recipes() -> dict[str, SoundRecipe]:
    """All of them by name: the configurations whose heads say what is published."""
    found = (SoundRecipe(path) for path in sorted(FOLDER.glob("*.yaml")))
    return {recipe.name: recipe for recipe in found if "Published" in recipe.head}


def main() -> None:
    for recipe in sound_recipes().values():
        parts = ", ".join(f"{part} {number:,}" for part, number in recipe.parameters().items())
        print(f"{recipe.name}: {parts}; {recipe.bits() / 1000:g} kbit/s")


if __name__ == "__main__":
    main()

"""Recipes of sound: configurations of published codecs, with heads as those of pictures have them (`recipes.py`).

python scripts/sound_recipes.py  # parameters by part, and kbit/s, of each
"""

from functools import partial

from first_run import ROOT
from recipes import Recipe, recipes_in

from vqkit import AudioTokenizer

FOLDER = ROOT / "configs/audio"


class SoundRecipe(Recipe):
    """A configuration of a published codec."""

    tokenizer: AudioTokenizer

    def bits(self) -> float:
        """Of a second of sound, all levels."""
        return 1000 * self.tokenizer.kbps


sound_recipes = partial(recipes_in, FOLDER, SoundRecipe)


def main() -> None:
    for recipe in sound_recipes().values():
        parts = ", ".join(f"{part} {number:,}" for part, number in recipe.parameters().items())
        print(f"{recipe.name}: {parts}; {recipe.bits() / 1000:g} kbit/s")


if __name__ == "__main__":
    main()

"""Interpolate between the weights of two runs that parted from one: less of an adversary, without training again.

    python scripts/interpolate_runs.py runs/photos_features_again runs/photos_adversarial_late --share 0.25 \
      --to runs/photos_interpolated/tokenizer

Every weight is (1 - share) a + share b; counts are those of the first run. Runs that were never one have no weights in
common, and nothing comes of it.

Source: Wang et al. 2018 (ESRGAN, arXiv:1809.00219), sec. 3.4, between generators without and with an adversary.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from the checkout, installed or not

import torch

from trainers.core.checkpoints import save_tokenizer
from vqkit import Tokenizer
from vqkit.saving.pretrained import check_replaceable


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder with a tokenizer")
    parser.add_argument("other", type=Path, help="run folder that went on from the same weights, for as many steps")
    parser.add_argument("--share", type=float, required=True, help="of the other run, in [0, 1]")
    parser.add_argument("--to", type=Path, required=True, help="folder to write; a tokenizer that is there is replaced")
    arguments = parser.parse_args()
    if not 0 <= arguments.share <= 1:
        parser.error(f"--share {arguments.share}: expected a number in [0, 1]")
    folders = [run / "tokenizer" for run in (arguments.run, arguments.other)]
    steps = [json.loads((folder / "weights.json").read_text())["step"] for folder in folders]
    if steps[0] != steps[1]:
        sys.exit(f"{arguments.run} has {steps[0]} steps and {arguments.other} {steps[1]}: name runs of as many")
    first, second = (Tokenizer.from_pretrained(folder) for folder in folders)
    check_replaceable(arguments.to)
    save_tokenizer(interpolated(first, second, arguments.share), arguments.to, {"step": steps[0], "run": None})


def interpolated(first: Tokenizer, second: Tokenizer, share: float) -> Tokenizer:
    """The first tokenizer, with a share of the weights of the second.

    Raises:
        ValueError: their weights have other names or shapes.
    """
    ours, theirs = (tokenizer.state_dict() for tokenizer in (first, second))
    shapes, others = ({name: getattr(value, "shape", None) for name, value in s.items()} for s in (ours, theirs))
    if shapes != others:
        names = sorted(name for name in shapes.keys() | others.keys() if shapes.get(name) != others.get(name))
        raise ValueError(f"the weights of both differ in names or shapes, {names[0]} first: take runs of one model")
    mixed = {
        name: torch.lerp(value, theirs[name], share)
        if isinstance(value, torch.Tensor) and value.is_floating_point()
        else value
        for name, value in ours.items()
    }
    first.load_state_dict(mixed)
    return first


if __name__ == "__main__":
    main()

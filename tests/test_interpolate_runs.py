"""Weights between those of two runs: `scripts/interpolate_runs.py`."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

from tests.trainers.tiny import make_tokenizer
from trainers.core.checkpoints import save_tokenizer
from vqkit import Tokenizer

SCRIPT = Path(__file__).parents[1] / "scripts/interpolate_runs.py"


def test_weights_are_mixed_and_counts_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = []
    for number, name in enumerate(("one", "two")):
        tokenizer = make_tokenizer()
        state = tokenizer.state_dict()
        for value in state.values():
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                value += number  # in place: these are the tokenizer's own
        save_tokenizer(tokenizer, tmp_path / name / "tokenizer", {"step": 7})
        states.append(state)
    runs = [str(tmp_path / name) for name in ("one", "two")]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *runs, "--share", "0.25", "--to", str(tmp_path / "mixed")])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    found = Tokenizer.from_pretrained(tmp_path / "mixed").state_dict()
    for name, value in states[0].items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            # Values of a few units: lerp rounds twice in float32.
            torch.testing.assert_close(found[name], value + 0.25 * (states[1][name] - value), rtol=2**-22, atol=2**-22)
        elif isinstance(value, torch.Tensor):
            assert torch.equal(found[name], value)


def test_runs_of_other_lengths_or_models_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step, name in enumerate(("one", "two")):
        save_tokenizer(make_tokenizer(), tmp_path / name / "tokenizer", {"step": step})
    runs = [str(tmp_path / name) for name in ("one", "two")]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *runs, "--share", "0.25", "--to", str(tmp_path / "mixed")])
    with pytest.raises(SystemExit, match=r"0 steps and .* 1: name runs of as many"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    interpolated = runpy.run_path(str(SCRIPT))["interpolated"]
    other = make_tokenizer()
    other.encoder = torch.nn.Conv2d(3, 5, 1)
    with pytest.raises(ValueError, match=r"differ in names or shapes, encoder\."):
        interpolated(make_tokenizer(), other, 0.5)

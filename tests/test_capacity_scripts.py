"""What scripts/gaussian_capacity.py and scripts/importance.py measure, on small cases."""

import json
import sys
from pathlib import Path

import gaussian_capacity
import importance
import pytest
import torch

from vqkit.methods import METHODS

pytestmark = pytest.mark.slow


def test_cells_are_measured_and_tabled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in (("STEPS", 3), ("BATCH", 64), ("RECORD", tmp_path / "record.json")):
        monkeypatch.setattr(gaussian_capacity, name, value)
    monkeypatch.setattr(gaussian_capacity, "PICTURE", tmp_path / "picture.png")
    names = ["lfq", "fsq_4", "random_16", "method_vq"]
    monkeypatch.setattr(gaussian_capacity, "CELLS", {name: gaussian_capacity.CELLS[name] for name in names})
    monkeypatch.setattr(sys, "argv", ["gaussian_capacity.py"])
    gaussian_capacity.main()
    cells = json.loads((tmp_path / "record.json").read_text())["cells"]
    assert list(cells) == names and (tmp_path / "picture.png").is_file()
    assert all(4 ** -row["bits"] <= row["distortion"] < 1 for row in cells.values())
    assert "| LFQ, 8 bits | 1.000 | 1.000 | 0.36" in gaussian_capacity.table()


def test_every_method_has_a_cell_and_every_record_too() -> None:
    assert {f"method_{name}" for name in METHODS} <= gaussian_capacity.CELLS.keys()
    assert json.loads(gaussian_capacity.RECORD.read_text())["cells"].keys() <= gaussian_capacity.CELLS.keys()


def test_errors_of_outputs_are_those_of_the_layer() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, tokens = (torch.randn(*shape, generator=generator) for shape in ((32, 24), (300, 24)))
    tokens = tokens * torch.linspace(0.1, 5, 24)
    moments = tokens.T @ tokens / len(tokens)
    errors = {}
    for way, quantized in importance.ways(weight, moments.diagonal(), 8, 0).items():
        assert quantized.shape == weight.shape and len(quantized.reshape(-1, 2).unique(dim=0)) <= 8
        expected = (tokens @ (weight - quantized).T).square().sum() / (tokens @ weight.T).square().sum()
        errors[way] = importance.output_error(weight, quantized, moments)
        assert errors[way] == pytest.approx(float(expected), rel=1e-4)
    assert max(error for way, error in errors.items() if way != "k-means") < errors["k-means"]

"""Squares of photographs: `scripts/cut_tiles.py`."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from torchvision.io import decode_image, encode_png

SCRIPT = Path(__file__).parents[1] / "scripts/cut_tiles.py"


def test_squares_are_the_pixels_of_the_photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photograph = torch.randint(0, 256, (3, 21, 34), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs/one.png").write_bytes(encode_png(photograph).numpy().tobytes())
    words = [str(SCRIPT), str(tmp_path / "photographs"), "--to", str(tmp_path / "tiles"), "--side", "10"]
    monkeypatch.setattr(sys, "argv", words)
    runpy.run_path(str(SCRIPT), run_name="__main__")
    tiles = [decode_image(str(path)) for path in sorted((tmp_path / "tiles").iterdir())]
    wanted = [photograph[:, top : top + 10, left : left + 10] for top in (0, 10) for left in (0, 10, 20)]
    assert torch.equal(torch.stack(tiles), torch.stack(wanted))
    with pytest.raises(SystemExit, match="is not empty"):
        runpy.run_path(str(SCRIPT), run_name="__main__")

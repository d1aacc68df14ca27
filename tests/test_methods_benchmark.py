"""benchmarks/methods.py for a few steps: every quantizer is built, trained and measured, and the table has its form."""

from pathlib import Path

import pytest
import torch

from benchmarks import methods
from vqkit.methods import METHODS


def test_table_of_two_methods(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    output = tmp_path / "methods.md"
    names = ["ema", "residual ema, 2 x 32 codes"]
    arguments = f"--steps 3 --batch 128 --patches 2048 --threads {torch.get_num_threads()} --output {output}".split()
    methods.main(["--methods", *names, *arguments])
    text = output.read_text()
    assert "- command: `python benchmarks/methods.py --steps 3" in text and str(tmp_path) not in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows[1:]] == ["| k-means of pixels", *(f"| {name}" for name in names)]
    assert all(row.count(" dB") == 2 for row in rows[2:])
    assert "written:" in capsys.readouterr().out


def test_every_method_is_there_and_has_ten_bits() -> None:
    assert METHODS.keys() <= methods.QUANTIZERS.keys()
    for name, build in methods.QUANTIZERS.items():
        quantizer = build()
        codes = 1
        for size in quantizer.codebook_sizes:
            codes *= size
        assert codes == 2**methods.BITS, name
        assert quantizer.dim == methods.DIM

"""benchmarks/soft_assignment.py at tiny sizes: the form of its table, both sides alike, and memory that it sees."""

import sys
from pathlib import Path

import pytest
import torch

from benchmarks import soft_assignment
from benchmarks.arguments import Shape
from benchmarks.memory import Memory, in_own_process

ROOT = Path(__file__).resolve().parents[1]
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_table_of_both_sides(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soft_assignment, "in_own_process", lambda *arguments: Memory(2**22, 2**9))
    output = tmp_path / "new" / "table.md"
    words = ["--shapes", "64,16,4", "--rounds", "2", "--threads", "1", "--output", str(output)]
    soft_assignment.main(words)
    text = output.read_text()
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("|--")]
    header, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[0] for row in rows] == list(soft_assignment.SIDES) and all(len(row) == len(header) for row in rows)
    ours = dict(zip(header, rows[0], strict=True))
    assert ours["same codes"] == "100.00%" and float(ours["gradients differ"]) < 1e-4 and ours["rounds"] == "2"
    assert float(ours["ms"]) > 0 and float(ours["times faster"]) > 0
    assert ours["MiB"] == "4" and ours["MiB beyond outputs"] == "4" and ours["largest MiB"] == "0.000488"
    assert "- no allocation of a float32 N x K matrix: met" in text
    for words in ("- command: `python benchmarks/soft_assignment.py", "- machine: ", "- threads: 1", "## Targets"):
        assert words in text
    assert str(ROOT) not in text and str(tmp_path) not in text
    assert "written:" in capsys.readouterr().out


def memory_of_both(shape: Shape) -> list[Memory]:
    return [soft_assignment.measure_memory(side, shape, "cpu", 1) for side in soft_assignment.SIDES]


@pytest.mark.slow
@linux
def test_memory_sees_the_n_by_k_matrices_of_one_side_only() -> None:
    """The resident set is measured, so nothing inside an operator is hidden."""
    shape = Shape(2048, 4096, 8)
    matrix = 4 * shape.vectors * shape.codes
    ours, theirs = in_own_process(memory_of_both, shape)
    assert theirs.largest == matrix and theirs.peak > (soft_assignment.MATRICES - 1) * matrix
    assert ours.largest <= matrix / 8 and ours.peak < matrix


def test_both_sides_leave_the_same() -> None:
    shape = Shape(60, 20, 6)
    ours, theirs = (step(*soft_assignment.tensors(shape, "cpu")) for step in soft_assignment.SIDES.values())
    assert torch.equal(ours.indices, theirs.indices)
    torch.testing.assert_close(ours[1:], theirs[1:], rtol=1e-3, atol=1e-5)


def test_what_does_not_fit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soft_assignment, "free_memory", lambda device: 2**30)
    shape = Shape(4096, 262144, 8)
    reason = soft_assignment.refusal("materialized", shape, "cpu")
    assert reason == "not run: 8 N x K matrices take 32 GiB, 1 are free"
    assert soft_assignment.refusal("vqkit", shape, "cpu") is None
    row = soft_assignment.table([soft_assignment.Result("materialized", shape, refusal=reason)])[-1]
    assert row.count("|") == soft_assignment.HEADER.count("|") and reason in row

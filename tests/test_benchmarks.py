"""benchmarks/quantizer_step.py at tiny sizes: the form of its table, its honesty about memory, and its errors."""

import dataclasses
import re
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import composites, counterparts, memory, quantizer_step

ROOT = Path(__file__).resolve().parents[1]
TINY = ["--shapes", "64,16,4", "--rounds", "1", "--threads", "1"]
SHORT = [method for method in counterparts.COMPOSITES if not method.startswith("32 stages")]  # these part by rounding
needs_peer = pytest.mark.skipif(counterparts.peer is None, reason="needs the extra `bench`")
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def table(text: str) -> list[list[str]]:
    """The cells of the first table, its header first."""
    lines = [line for line in text.partition("## Targets")[0].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if not line.startswith("|--")]


@needs_peer
@linux
def test_table_of_both_sides(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantizer_step, "in_own_process", lambda *arguments: memory.Memory(2**22, 2**9))
    output = tmp_path / "new" / "table.md"
    quantizer_step.main([*TINY, "--methods", "ema", "fsq", "--output", str(output)])
    assert [path.name for path in output.parent.iterdir()] == ["table.md"]  # nothing temporary is left
    text = output.read_text()
    header, *rows = table(text)
    assert [row[0] for row in rows] == ["ema", "fsq"] and all(len(row) == len(header) for row in rows)
    for row in rows:
        cells = dict(zip(header, row, strict=True))
        assert all(float(cells[name]) > 0 for name in header if name.endswith((" ms", " MiB", "faster")))
        assert cells["rounds"] == "1"
    assert rows[0][header.index("same codes")] == "100.00%"
    for words in (
        "- command: `python benchmarks/quantizer_step.py",
        "- machine: ",
        "- threads: 1",
        "- versions: torch ",
        "- date: 20",
    ):
        assert words in text
    assert "## Targets" in text and "## State of both sides" in text
    assert str(ROOT) not in text and str(tmp_path) not in text
    assert "written:" in capsys.readouterr().out


@needs_peer
@linux
def test_table_of_composites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantizer_step, "in_own_process", lambda *arguments: memory.Memory(2**22, 2**9))
    output = tmp_path / "table.md"
    composites.main([*TINY, "--shapes", "64,16,8", "--methods", "8 groups of ema", "--output", str(output)])
    text = output.read_text()
    _, row = table(text)
    assert row[0] == "8 groups of ema" and "100.00%" in row
    assert "benchmarks/composites.py --device cpu" in text and "--methods '8 groups of ema' --shapes 64,16,8" in text


@linux
def test_scales_are_measured_at_sizes_of_their_own_and_without_the_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantizer_step, "in_own_process", lambda *arguments: memory.Memory(2**22, 2**9))
    monkeypatch.setattr(counterparts, "peer", None)
    small = (counterparts.Shape(256, 16, 4),)
    for method in ("10 scales of ema", "10 scales of vq"):
        changed = dataclasses.replace(counterparts.COMPOSITES[method], shapes=small)
        monkeypatch.setitem(counterparts.COMPOSITES, method, changed)
    output = tmp_path / "table.md"
    table_of_small = dataclasses.replace(composites.TABLE, shapes=[counterparts.Shape(64, 16, 8)])
    methods = ["10 scales of ema", "8 groups of ema", "10 scales of vq"]
    rounds = ["--rounds", "1", "--threads", "1"]
    quantizer_step.main([*rounds, "--methods", *methods, "--output", str(output)], table_of_small)
    scales, _, groups = output.read_text().partition("## N = 64, K = 16, D = 8")
    header, *rows = table(scales)
    assert [row[0] for row in rows] == ["10 scales of ema", "10 scales of vq"] and "loop ms" in header
    assert all(row[header.index("same codes")] == "100.00%" for row in rows)
    header, row = table(groups)
    assert row[header.index("VQP ms")] == "-"


@linux
def test_without_the_peer(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantizer_step, "in_own_process", lambda *arguments: memory.Memory(2**22, 2**9))
    monkeypatch.setattr(counterparts, "peer", None)
    output = tmp_path / "table.md"
    quantizer_step.main([*TINY, "--methods", "vq", "--output", str(output)])
    assert "vector-quantize-pytorch is not installed, so vqkit is measured alone" in capsys.readouterr().out
    header, row = table(output.read_text())
    cells = dict(zip(header, row, strict=True))
    assert float(cells["vqkit ms"]) > 0
    assert cells["VQP ms"] == cells["times faster"] == cells["same codes"] == "-"
    assert "(VQP) not installed" in output.read_text()


@needs_peer
@pytest.mark.parametrize("method", [*counterparts.COMPARISONS, *SHORT])
def test_both_sides_start_equal(method: str) -> None:
    shape = counterparts.Shape(256, 16, 8)
    x, upstream = counterparts.tensors(shape, "cpu")
    indices, gradients = [], []
    for side in (0, 1):
        x.grad = None
        module = counterparts.build(method, side, shape, "cpu")
        assert module.training
        indices.append(counterparts.step(module, x, upstream))
        gradients.append(x.grad.clone())
    assert (indices[0] == indices[1]).double().mean() == 1
    if method == "residual" or "stages" in method:  # theirs passes the decoder's gradient once for each stage
        assert gradients[1].norm() > 2 * gradients[0].norm()
    elif method != "fsq":  # whose bounding functions differ
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("device", "peaks", "expected"),
    [("cpu", [9, 1, 7, 3, 5], 5), ("cpu", [2**30], 2**30), ("cpu", [None], None), ("cuda", [9], 9)],
)
def test_little_memory_is_that_of_several_processes(
    device: str, peaks: list[int | None], expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter(peaks)
    monkeypatch.setattr(quantizer_step, "in_own_process", lambda *arguments: memory.Memory(next(found), 2**9))
    shape = counterparts.Shape(64, 16, 8)
    assert quantizer_step.typical_memory("ema", 0, shape, device, 1) == (expected, 2**9)
    assert not list(found)


@pytest.mark.slow
@needs_peer
@linux
def test_memory_sees_an_n_by_k_buffer() -> None:
    shape = counterparts.Shape(2048, 4096, 8)
    matrix = shape.vectors * shape.codes * 4
    ours, theirs = (
        memory.in_own_process(quantizer_step.measure_memory, "ema", side, shape, "cpu", 1) for side in (0, 1)
    )
    assert theirs.largest == 2 * matrix  # int64, one-hot
    assert theirs.peak > 3 * matrix
    assert ours.largest < shape.vectors * shape.codes and ours.peak < matrix


def leave(code: int) -> None:
    raise SystemExit(code)


@pytest.mark.slow
def test_a_process_that_dies_is_named() -> None:
    with pytest.raises(RuntimeError, match="ended with exit code 3"):
        memory.in_own_process(leave, 3)


@pytest.mark.parametrize(
    ("words", "message"), [(["--shapes", "64,16,1"], "D of at least 2"), (["--methods", "lfq"], "invalid choice")]
)
def test_rejects(words: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        quantizer_step.main(words)
    assert re.search(message, capsys.readouterr().err)

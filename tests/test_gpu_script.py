"""scripts/gpu.py without a GPU: every step's code runs, tiny, and no table has a figure."""

import json
import time
from pathlib import Path

import pytest
import torch

from benchmarks import calibration, device, search, search_report, soft_assignment, tile_sweep
from benchmarks.arguments import Shape
from benchmarks.memory import Memory
from benchmarks.search_report import Result
from scripts import gpu as script
from vqkit.kernels import gpu
from vqkit.kernels.gpu.tiles import Tile

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a dry run is for machines without a GPU")


def rows(text: str) -> list[list[str]]:
    """Cells of the tables, less headers."""
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("|-")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.slow
def test_search(tmp_path: Path) -> None:
    output = tmp_path / "table.md"
    words = ["--shapes", "10,36,3", "--rounds", "1", "--threads", "1", "--methods", "fast", "high", "exact", "mm16"]
    search.main(["--device", "interpreter", *words, "--output", str(output)])
    table = rows(output.read_text())
    assert [row[0] for row in table[1:]] == ["mm tiled", "mm bfloat16", "vqkit exact", "vqkit high", "vqkit fast"]
    assert all(set(row[1:]) == {device.NOT_MEASURED} and len(row) == len(table[0]) for row in table[1:])
    assert "GFLOP/s" not in output.read_text()


def test_soft_assignment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soft_assignment, "in_own_process", lambda *arguments: Memory(2**22, 2**9))
    output = tmp_path / "table.md"
    words = ["--shapes", "5,7,3", "--rounds", "1", "--threads", "1", "--output", str(output)]
    soft_assignment.main(["--device", "interpreter", *words])
    assert [set(row[1:]) for row in rows(output.read_text())[1:]] == [{device.NOT_MEASURED}] * 2
    assert "GiB beyond parameters and outputs: not measured" in output.read_text()


def test_calibration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "CALLS", 1)
    monkeypatch.setattr(calibration, "ROUNDS", 1)
    monkeypatch.setattr(calibration, "DEPTHS", (16,))
    output = tmp_path / "calibration.md"
    calibration.main(["--device", "interpreter", "--output", str(output)])
    assert [set(row[1:]) for row in rows(output.read_text()) if row[0] not in ("what", "depth")] == [
        {device.NOT_MEASURED}
    ] * (8 + 1)
    numbers = json.loads(output.with_suffix(".json").read_text())
    assert set(numbers["rates"].values()) == {None} and numbers["errors"] is None


def test_errors_above_the_bound_are_said() -> None:
    row = {"depth": 16, "one product": 1e-6, "bound of one": 2e-6, "three products": 1e-6, "bound of three": 2e-6}
    assert not calibration.exceeded([row])
    assert calibration.exceeded([row, {**row, "one product": 3e-6}]) and calibration.exceeded(
        [{**row, "three products": 1}]
    )


def test_tiles_of_the_sweep() -> None:
    """The one that stands is first; no size is 0, and none beyond its limits."""
    tile = Tile(64, 1, 8, 1, 1)
    bucket = tile_sweep.Bucket("", 8, {8: tile}, 8, lambda: None, {"owned": (64, 128), "streamed": (1, 1)})
    found = tile_sweep.candidates(bucket)
    assert found[0] == tile and len(found) == len(set(found)) == 2 * 2 * 2
    assert {tile.owned for tile in found} == {64, 128} and {tile[1:3] + tile[5:] for tile in found} == {(1, 8, 0)}


def test_the_sweep_takes_each_tile_and_puts_the_entry_back() -> None:
    entries, taken = {8: Tile(8, 1, 8, 2, 1)}, []

    def call() -> None:
        taken.append(entries[8])
        if entries[8].owned == 16:
            raise ValueError("too large")
        time.sleep(0.02 * entries[8].warps)

    bucket = tile_sweep.Bucket("", 8, entries, 8, call, {"streamed": (1, 1), "stages": (1, 1)})
    standing, expected = bucket.tile, {*tile_sweep.candidates(bucket)[:3]}
    found = tile_sweep.sweep(bucket, 3, 10.0, 1, 1)
    assert {*taken} == {tile for tile, _ in found} == expected
    times = [value for _, value in found if isinstance(value, float)]
    assert times == sorted(times) and len(times) > 1 and entries == {8: standing}


def test_gpu_targets() -> None:
    shape = Shape(16384, 16384, 8)
    found = [Result(name, shape, (1.0,), graph_time=80e-6, device="cuda") for name in ("fast", "exact")]
    assert search_report.gpu_targets(found) == [
        "- vqkit fast at (16384, 16384, 8), asked on an H200: at most 0.07 ms: 0.08 ms, missed",
        "- vqkit exact at (16384, 16384, 8), asked on an H200: at most 0.09 ms: 0.08 ms, met",
    ]
    nothing = [Result(name, shape, (1.0,), device="interpreter") for name in ("fast", "exact")]
    assert all(line.endswith(device.NOT_MEASURED) for line in search_report.gpu_targets(nothing))


def test_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
    """Steps that fail or hang do not keep the others from running, and the table says so; no dry run verifies."""
    steps = {
        "tests": script.Step(1, "", "-c pass"),
        "calibration": script.Step(1, "", "-c pass"),
        "bad": script.Step(1, "", "-c raise(SystemExit(3))"),
        "slow": script.Step(0, "", "-c while(True):pass"),
    }
    monkeypatch.setattr(script, "STEPS", steps)
    with pytest.raises(SystemExit, match="failed: bad, slow"):
        script.main(["--build", str(tmp_path)])
    text = (tmp_path / "gpu_dry_run.md").read_text()
    for words in ("## Tests", "exit status 0", "exit status 3", "exit status none, ended after 0 min", script.DRY):
        assert words in text
    assert script.DRY in capfd.readouterr().out
    before = gpu.VERIFIED.read_text()
    script.main(["--build", str(tmp_path), "--steps", "tests", "calibration"])
    assert gpu.VERIFIED.read_text() == before


def test_a_gpu_joins_the_list_of_verified_ones_once(tmp_path: Path) -> None:
    listed = tmp_path / "verified.json"
    listed.write_text("[]")
    for capability, triton in ((90, "3.6.0"), (80, "3.6.0"), (90, "3.6.0")):
        script.verify(listed, capability, triton)
    expected = [{"capability": 80, "triton": "3.6.0"}, {"capability": 90, "triton": "3.6.0"}]
    assert json.loads(listed.read_text()) == expected


def test_the_steps_take_half_an_hour_at_most() -> None:
    assert sum(step.minutes for step in script.STEPS.values()) <= 30
    assert all(step.minutes <= 10 for step in script.STEPS.values())

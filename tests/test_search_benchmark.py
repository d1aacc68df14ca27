"""benchmarks/search.py at tiny sizes: the form of its table, its honesty about memory and codes, and its errors."""

import importlib.util
import math
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import machine, memory, paired, search, search_methods, search_report
from benchmarks.arguments import Shape
from benchmarks.search_methods import METHODS
from benchmarks.search_report import Result

ROOT = Path(__file__).resolve().parents[1]
TINY = Shape(64, 48, 4)
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def cells(text: str) -> dict[str, dict[str, str]]:
    """The first table of a report, by method and column."""
    lines = [line for line in text.partition("## Targets")[0].splitlines() if line.startswith("|")]
    header, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line[1] != "-"]
    assert all(len(row) == len(header) for row in rows)
    return {row[0]: dict(zip(header, row, strict=True)) for row in rows}


def skip_if_missing(name: str) -> None:
    reason = METHODS[name].refusal(TINY, "cpu", None)
    if reason:
        pytest.skip(f"{name}: {reason}")


@linux
def test_table(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "in_own_process", lambda function, *arguments: 2 * memory.MIB)
    output = tmp_path / "new" / "table.md"
    words = ["--shapes", "300,48,4", "--k", "1", "--rounds", "2", "--threads", "1"]
    search.main([*words, "--methods", "torch", "cdist", "flash-kmeans", "--output", str(output)])
    assert [path.name for path in output.parent.iterdir()] == ["table.md"]  # nothing temporary is left
    text = output.read_text()
    table = cells(text)
    assert list(table) == ["mm tiled", "cdist", "flash-kmeans", "vqkit torch"]  # the yardstick is always there
    assert table["flash-kmeans"]["ms"] == "skipped: only on cuda"
    assert table["mm tiled"]["right codes"] == "-" and table["mm tiled"]["times mm"] == "1"
    for title in ("cdist", "vqkit torch"):
        row = table[title]
        assert row["right codes"] == "100.00%" and row["rounds"] == "2" and row["MiB"] == "2"
        assert 0 < float(row["minimum ms"]) <= float(row["ms"])
        assert float(row["times mm"]) > 0 and float(row["times cdist"]) > 0
    assert re.search(
        r"vqkit torch at \(300, 48, 4\): \S+ times cdist \(asked: at most 1\): not decided: 2 of the 3 rounds", text
    )
    command = "- command: `python benchmarks/search.py --device cpu --threads 1 --rounds 2"
    for words in (
        command,
        "- instruction sets: ",
        "- threads: 1",
        "- versions: torch ",
        "faiss-cpu ",
        "seed 0",
        "Codes are checked on 300 rows",
    ):
        assert words in text
    assert str(ROOT) not in text and str(tmp_path) not in text
    assert "written:" in capsys.readouterr().out


@pytest.mark.parametrize("name", [name for name in METHODS if name != search_methods.YARDSTICK])
def test_every_method_finds_the_nearest_codes(name: str) -> None:
    skip_if_missing(name)
    x, codes = search_methods.data(TINY, "cpu", 3)
    expected = (x.double()[:, None] - codes.double()).square().sum(-1).argmin(1)
    with torch.no_grad():
        indices = METHODS[name].prepare(x, codes)()
    assert indices is not None and indices.dtype == torch.int64
    assert torch.equal(indices, expected)
    assert torch.equal(search_methods.float64_order(x, codes, most_scores=100), expected)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.finds_several])
def test_methods_that_find_several_codes(name: str) -> None:
    skip_if_missing(name)
    x, codes = search_methods.data(TINY, "cpu", 3)
    expected = (x.double()[:, None] - codes.double()).square().sum(-1).sort(1).indices[:, :5]
    assert torch.equal(METHODS[name].prepared(x, codes, 5)(), expected)
    assert torch.equal(search_methods.float64_order(x, codes, 5, most_scores=100), expected)


@linux
def test_tables_of_several_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only of methods that find several, and only where there are so many codes."""
    monkeypatch.setattr(search, "in_own_process", lambda function, *arguments: 2 * memory.MIB)
    output = tmp_path / "table.md"
    words = ["--shapes", "300,48,4", "--k", "5", "49", "--rounds", "1", "--threads", "1", "--methods", "torch", "cdist"]
    search.main([*words, "--output", str(output)])
    text = output.read_text()
    table = cells(text)
    assert text.count("## N = ") == 1 and "## N = 300, K = 48, D = 4, k = 5" in text
    assert list(table) == ["mm tiled", "vqkit torch"]
    assert table["vqkit torch"]["right codes"] == "100.00%" and table["vqkit torch"]["times faiss"] == "-"
    assert "- none applies" in text


def test_the_product_covers_all_rows_and_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    products = []
    multiply = torch.mm

    def recorded(left: Tensor, right: Tensor, *, out: Tensor) -> Tensor:
        products.append(multiply(left, right, out=out).clone())
        return out

    monkeypatch.setattr(torch, "mm", recorded)
    x, codes = search_methods.data(Shape(600, 1100, 3), "cpu", 0)
    search_methods.tiled_product(x, codes)()
    assert sum(product.numel() for product in products) == 600 * 1100
    torch.testing.assert_close(products[-1], x[-products[-1].shape[0] :] @ codes[-76:].T)


def memory_of(names: list[str], shape: Shape) -> list[int | None]:
    return [search.measure_memory(name, shape, "cpu", 1, 0) for name in names]


@pytest.mark.slow
@linux
def test_memory_sees_an_n_by_k_matrix() -> None:
    shape = Shape(2048, 2048, 8)
    needed = 4 * shape.vectors * shape.codes
    full, tiled = memory.in_own_process(memory_of, ["addmm", "mm"], shape)
    assert 0.9 * needed < full < 2 * needed  # some of it may take the place of what set-up has freed
    assert tiled < 0.2 * needed


def test_what_needs_more_than_is_free_is_skipped() -> None:
    shape = Shape(1024, 1024, 4)
    assert METHODS["cdist"].refusal(shape, "cpu", 4 * 2**20) is None
    assert METHODS["cdist"].refusal(shape, "cpu", 2**21) == "needs 0.00391 GiB, 0.00195 GiB are free"
    assert METHODS["torch"].refusal(shape, "cpu", 0) is None
    assert METHODS["cdist"].refusal(shape, "cpu", None) is None


def test_missing_rivals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert METHODS["faiss"].refusal(TINY, "cpu", None) == "not installed"
    assert METHODS["faiss"].refusal(TINY, "cuda", None) == "only on cpu"
    assert METHODS["flash-kmeans"].refusal(TINY, "cuda", None) == "not installed"
    monkeypatch.setattr(search_methods.native, "can_search", lambda x, codes, k: k == 128)
    assert METHODS["native"].refusal(TINY, "cpu", None, 129) == "not built for these inputs"
    assert METHODS["native"].refusal(TINY, "cpu", None, 128) is None


def test_a_method_whose_process_is_killed_is_skipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def killed(function: Callable, method: str, *arguments: object) -> int:
        if method == "addmm":
            raise memory.Killed("signal 9 ended the process: out of memory?")
        return 0

    monkeypatch.setattr(search, "in_own_process", killed)
    output = tmp_path / "table.md"
    search.main(
        ["--shapes", str(TINY), "--k", "1", "--rounds", "1", "--methods", "cdist", "addmm", "--output", str(output)]
    )
    table = cells(output.read_text())
    assert table["addmm"]["ms"] == "skipped: signal 9 ended the process: out of memory?"
    assert table["cdist"]["rounds"] == "1"


def end_by_signal() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
@linux
def test_a_killed_process_is_told_from_a_failed_one() -> None:
    with pytest.raises(memory.Killed, match="signal 9 ended the process"):
        memory.in_own_process(end_by_signal)


def test_slow_methods_drop_out_and_the_yardstick_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "PAUSE", 0)
    order = []

    def call(name: str, seconds: float) -> Callable[[], None]:
        return lambda: (order.append(name), time.sleep(seconds))[0]

    calls = {"mm": call("mm", 0.03), "slow": call("slow", 0.05), "quick": call("quick", 0.022)}
    contestants = search.run(calls, rounds=3, seconds=0.08)
    assert {name: len(contestant.times) for name, contestant in contestants.items()} == {"mm": 3, "slow": 1, "quick": 3}
    assert order == ["mm", "slow", "quick", "quick", "mm", "mm", "quick"]  # every other round backwards
    assert all(time >= 0.02 for contestant in contestants.values() for time in contestant.times)


def test_ratios_are_of_common_rounds() -> None:
    assert paired.ratio([2.0, 30.0, 5.0], [1.0, 10.0, 1.0, 1.0]) == 3.0
    assert paired.ratio([], [1.0]) is None


def test_an_interrupted_write_leaves_the_old_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "table.md"
    machine.write(output, "old")

    def interrupted(path: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vqkit.saving.files.os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        machine.write(output, "new")
    assert output.read_text() == "old" and list(tmp_path.iterdir()) == [output]


def test_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = search_report.TARGET_SHAPES[0]

    def lines(native: float, rounds: int = 15, at: Shape = shape, product: float = 1.0) -> list[str]:
        times = {"mm": product, "cdist": 4.0, "torch": 4.1, "native": native}
        first = {"mm": 1.0, "cdist": 4.0, "torch": 4.1, "native": 1.0}
        results = [Result(name, at, (first[name],) + (value,) * (rounds - 1)) for name, value in times.items()]
        return search_report.targets(results)

    monkeypatch.setattr(search_report, "instruction_sets", lambda: ["avx512f"])
    assert lines(1.1) == [
        "- vqkit native at (8192, 1024, 64): 1.1 times mm tiled (asked: at most 1.15): met",
        "- vqkit torch at (8192, 1024, 64): 1.02 times cdist (asked: at most 1): missed",
    ]
    assert lines(1.2)[0].endswith(": missed")
    assert lines(1.1, rounds=14)[0].endswith(": not decided: 14 of the 15 rounds that are needed")
    assert lines(1.1, product=1.6)[0].endswith("the median of mm tiled is 1.6 times its minimum, the machine was busy")
    assert lines(1.1, at=Shape(255, 1024, 64)) == ["- none applies to what was measured"]
    assert len(lines(1.1, at=Shape(256, 1024, 64))) == 1
    early = [Result("mm", shape, (1.0,) * 20), Result("native", shape, (1.0,) * 14)]
    assert search_report.targets(early)[0].endswith(": not decided: 14 of the 15 rounds that are needed")
    monkeypatch.setattr(search_report, "instruction_sets", lambda: ["avx2"])
    assert [line[:13] for line in lines(1.1)] == ["- vqkit torch"]


def test_checked_rows_are_few_enough_and_reach_the_end() -> None:
    for shape in (*search_report.TARGET_SHAPES, TINY):
        rows = range(shape.vectors)[search_report.checked_rows(shape)]
        assert len(rows) * shape.codes <= search_report.CHECKED_SCORES + shape.codes
        assert rows[-1] >= shape.vectors - math.ceil(shape.vectors / len(rows))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shapes", "64,16"], "expected N,K,D"),
        (["--shapes", "64,16,0"], "D of at least 1"),
        (["--rounds", "0"], "at least 1"),
        (["--threads", "two"], "at least 1"),
        (["--methods", "annoy"], "invalid choice"),
    ],
)
def test_rejects(words: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        search.main(words)
    assert re.search(message, capsys.readouterr().err)


def test_rejects_cuda_where_there_is_none(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        search.main(["--device", "cuda"])
    assert "use --device cpu" in capsys.readouterr().err

"""The script that makes a codebook file out of features."""

import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from scripts import build_codebook
from vqkit import FeatureCodebook, Quantizer


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def call(*words: object) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["build_codebook.py", *map(str, words)])
        build_codebook.main()

    return call


@pytest.fixture
def features(tmp_path: Path) -> torch.Tensor:
    """Two files of features around six centres."""
    centers = 100 * torch.randn(6, 12)
    rows = centers.repeat(20, 1) + 0.1 * torch.randn(120, 12)
    save_file({"a": rows[:50].contiguous()}, tmp_path / "first.safetensors")
    save_file({"b": rows[50:].to(torch.float64).contiguous()}, tmp_path / "second.safetensors")
    return centers


FILES = ("first.safetensors", "second.safetensors")


def test_centres_of_all_files_are_written_and_used(run, features, tmp_path: Path, capsys) -> None:
    run(*FILES, "--codebook-size", 6, "--out", "new/book.safetensors")
    (vectors,) = load_file(tmp_path / "new" / "book.safetensors").values()
    assert vectors.shape == (6, 12) and vectors.dtype == torch.float32
    assert (torch.cdist(features, vectors).min(1).values < 1).all()
    assert "6 centres of 120 features of 12 dimensions; a centre stands for 20 to 20 of them" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["book.safetensors"]
    book = partial(FeatureCodebook, base_path=str(tmp_path / "new" / "book.safetensors"), base_dim=12)
    assert torch.equal(Quantizer("vqgan_lc", dim=4, codebook_size=6, codebook=book).codebook.base, vectors)


def test_the_result_is_a_function_of_the_seed(run, features, tmp_path: Path) -> None:
    books = []
    for seed in (0, 0, 1):
        run(*FILES, "--codebook-size", 20, "--samples", 60, "--iterations", 2, "--seed", seed, "--out", "b.safetensors")
        books.append(load_file(tmp_path / "b.safetensors")["vectors"])
    assert torch.equal(books[0], books[1]) and not torch.equal(books[0], books[2])


def test_a_part_of_the_features_is_clustered(run, features, capsys) -> None:
    run(*FILES, "--codebook-size", 5, "--samples", 60, "--out", "b.safetensors")
    assert "5 centres of 60 features" in capsys.readouterr().out


def test_the_seed_draws_the_part(run, features, tmp_path: Path) -> None:
    """With as many centres as features, these are the features."""
    parts = []
    for seed in (0, 1):
        run(*FILES, "--codebook-size", 10, "--samples", 10, "--seed", seed, "--out", "b.safetensors")
        parts.append({tuple(row.tolist()) for row in load_file(tmp_path / "b.safetensors")["vectors"]})
    assert parts[0] != parts[1]


@pytest.mark.parametrize(
    ("tensors", "size", "message"),
    [
        ({"a": torch.zeros(9, 3)}, 3, r"different sizes \(first.safetensors: 12, x.safetensors: 3\)"),
        ({"a": torch.zeros(9, 12), "b": torch.zeros(1)}, 3, r"holds 2 tensors \['a', 'b'\]"),
        ({"a": torch.zeros(12)}, 3, r"holds torch.float32 of shape \(12,\): expected floats \(M, base_dim\)"),
        ({"a": torch.zeros(9, 12, dtype=torch.int64)}, 3, "holds torch.int64"),
        ({"a": torch.full((9, 12), float("nan"))}, 3, "holds NaN or infinity"),
        ({"a": torch.zeros(9, 12)}, 60, "--codebook-size 60: expected 1 to 59, the number of features"),
        ({"a": torch.zeros(9, 12)}, 0, "--codebook-size 0: expected 1 to 59"),
    ],
)
def test_mistakes_are_told_with_words(run, features, tmp_path: Path, tensors: dict, size: int, message: str) -> None:
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(SystemExit, match=message):
        run("first.safetensors", "x.safetensors", "--codebook-size", size, "--out", "b.safetensors")
    assert not (tmp_path / "b.safetensors").exists()


def test_other_mistakes(run, features, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    for words, message in (
        (("missing",), "missing: there is no such file"),
        (("x.safetensors",), "x.safetensors is not a valid safetensors file"),
        (("first.safetensors", "--samples", "0"), "--samples 0: expected at least 1"),
        (("first.safetensors", "--iterations", "-1"), "iterations is -1"),
    ):
        with pytest.raises(SystemExit, match=message):
            run(*words, "--codebook-size", 3, "--out", "b.safetensors")

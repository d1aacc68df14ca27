"""The script that ranks the methods: what is a twin of what, and when one is trained."""

import json
import sys

import pytest
import twins

from trainers.run.bases import read_config
from trainers.run.swap import WORDS


def row(name: str, psnr: float, **facts: object) -> dict:
    figures = {"ssim": 0.5, "st_alex_lpips": 0.3, "bpp": 0.15625, "coded_bpp": 0.08, "codebook_usage": 1.0}
    described = {"split": "set", "preprocessing": twins.PREPROCESSING}
    made = {"name": name, "psnr": psnr, "perplexity": 500.0, "steps": 900, "precision": "32-true", "machine": "this"}
    return figures | made | {"protocol": described} | facts


@pytest.fixture
def record(tmp_path, monkeypatch):
    monkeypatch.setattr(twins, "RECORD", tmp_path / "twins.json")
    monkeypatch.setattr(twins, "PICTURE", tmp_path / "twins.png")

    def written(*rows: dict) -> None:
        cells = {twins.TWINS[row["name"]].key(): row for row in rows}
        twins.RECORD.write_text(json.dumps({"cells": cells}))

    return written


def test_every_twin_has_a_key_of_its_own_and_a_word_or_an_overlay() -> None:
    assert len({twin.key() for twin in twins.TWINS.values()}) == len(twins.TWINS)
    assert all((twin.word in WORDS) != bool(twin.overlay) for twin in twins.TWINS.values())


def test_the_key_follows_what_is_trained(tmp_path, monkeypatch) -> None:
    before = twins.TWINS["fsq"].key()
    base = json.dumps(read_config(twins.CONFIG))
    (tmp_path / "twins.yaml").write_text(base.replace('"max_steps": 900', '"max_steps": 901'))
    monkeypatch.setattr(twins, "CONFIG", tmp_path / "twins.yaml")
    monkeypatch.setattr(twins, "ROOT", tmp_path)
    changed = twins.TWINS["fsq"].key()
    (tmp_path / "twins.yaml").write_text(base)
    assert twins.TWINS["fsq"].key() == before != changed


def test_only_what_is_not_there_is_trained(record, monkeypatch) -> None:
    record(row("fsq", 24.0))
    trained = []
    monkeypatch.setattr(twins, "cell", lambda name, *_, **__: trained.append(name) or row(name, 25.0))
    monkeypatch.setattr(sys, "argv", ["twins.py", "fsq", "simvq"])
    twins.main()
    assert trained == ["simvq"] and list(twins.trained()) == ["simvq", "fsq"]
    assert twins.PICTURE.is_file()


def test_what_was_measured_as_it_is_no_more_is_measured_again_and_not_trained(record, monkeypatch) -> None:
    record(row("fsq", 24.0, protocol={"split": "set", "preprocessing": "whole"}), row("simvq", 25.0))
    monkeypatch.setattr(twins, "cell", lambda *_, **__: pytest.fail("trained"))
    monkeypatch.setattr(twins, "measured", lambda run, _: row(run.name, 26.0))
    monkeypatch.setattr(sys, "argv", ["twins.py", "fsq", "simvq"])
    twins.main()
    assert {name: found["psnr"] for name, found in twins.trained().items()} == {"fsq": 26.0, "simvq": 25.0}


def test_the_table_ranks_and_names_what_is_not_trained(record) -> None:
    record(row("fsq", 24.0), row("vq", 25.0))
    lines = twins.table().splitlines()
    titles = [line.split("|")[1].strip() for line in lines if line.startswith("|")][2:]
    assert titles[:2] == [twins.TWINS["vq"].title, twins.TWINS["fsq"].title] and len(titles) == len(twins.TWINS)
    assert sum("not trained yet" in line for line in lines) == len(twins.TWINS) - 2


def test_rows_that_were_measured_in_another_way_are_refused(record) -> None:
    record(row("fsq", 24.0), row("vq", 25.0, protocol={"split": "other", "preprocessing": twins.PREPROCESSING}))
    with pytest.raises(ValueError, match="measure again with --measure"):
        twins.table()


def test_all_that_is_there_has_ten_bits_for_a_patch() -> None:
    """As near as a grid gets: FSQ has 1,000 codes."""
    rates = {name: row["bpp"] for name, row in twins.trained().items()}
    assert {name: rate for name, rate in rates.items() if abs(rate - 10 / 64) > 0.001} == {}

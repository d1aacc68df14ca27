"""The script of speech that no training had: which recordings it takes, what it makes of codecs, and the table."""

import json

import pytest
import soundfile
import torch
import unheard


def test_recordings_of_the_duration_are_taken_at_even_distances(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(unheard, "ROOT", tmp_path)
    for number in range(10):
        folder = tmp_path / ("ab"[number % 2])
        folder.mkdir(exist_ok=True)
        soundfile.write(folder / f"{number}_xx.flac", torch.zeros(100 * (number + 1)).numpy(), 100)
    taken = unheard.Recordings(".", "*_xx.flac", seconds=(3.0, 8.0), count=3)
    assert [path.name for path in taken.paths()] == ["2_xx.flac", "4_xx.flac", "6_xx.flac"]  # of 2 to 7
    with pytest.raises(FileNotFoundError, match=r"6 recordings \./\*\*/\*_xx.flac of 3 to 8 s: expected at least 7"):
        unheard.Recordings(".", "*_xx.flac", seconds=(3.0, 8.0), count=7).paths()


def test_a_codec_that_changes_nothing_is_without_a_fault() -> None:
    wave = 0.1 * torch.randn(16_000)
    found = unheard.measured(lambda waves: list(waves), {"one": [wave]})["one"]
    assert found["mel_distance"] == 0 and found["stoi"] == pytest.approx(1, abs=1e-6)


def test_runs_that_are_not_there_are_left_out(tmp_path, capsys) -> None:
    assert list(unheard.codings(tmp_path, 10)) == ["opus"]
    assert "holds no tokenizer" in capsys.readouterr().out


def test_a_column_is_the_mean_of_its_sets(tmp_path, monkeypatch) -> None:
    row = {name: {"stoi": 0.5, "mel_distance": 2.0} for name in unheard.SETS} | {
        "Greek": {"stoi": 0.9, "mel_distance": 2.0}
    }
    sets = {name: {"utterances": 5, "seconds": 10.0} for name in unheard.SETS}
    monkeypatch.setattr(unheard, "RECORD", tmp_path / "unheard.json")
    unheard.RECORD.write_text(json.dumps({"sets": sets, "machine": "one", "rows": {"speech": row, "opus": row}}))
    _, _, *rows = unheard.table().partition("\n\n")[0].splitlines()
    cells = "0.500 | - | 2.000 | 0.500 | - | 2.000 | 0.600 | - | 2.000"
    assert rows == [f"| `speech` | {cells} |", f"| Opus | {cells} |"]

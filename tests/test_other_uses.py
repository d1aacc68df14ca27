"""The scripts of docs/other_uses.md: what they measure, on small made-up data."""

import gzip
import json
import struct

import numpy as np
import pytest
import retrieval
import soundfile
import suggest_codes
import torch
import uncertainty
from PIL import Image


def labelled(labels: list[int]) -> retrieval.Pictures:
    return retrieval.Pictures(torch.arange(len(labels))[:, None].float(), torch.tensor(labels))


def test_precision_is_that_of_the_ranking() -> None:
    """Found at places 1, 3 and 4 of 4: (1/1 + 2/3 + 3/4) / 3."""
    queries, stored = labelled([7]), labelled([7, 0, 7, 7])
    found = retrieval.measure(lambda q, s: -s.T.expand(len(q), -1), queries, stored)
    assert found["map"] == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    assert (found["recall_1"], found["recall_10"]) == (1, 1)
    last = retrieval.measure(lambda q, s: s.T.expand(len(q), -1), labelled([0]), stored)
    assert last["map"] == pytest.approx(1 / 3) and last["recall_1"] == 0


def test_classes_are_numbered_anew() -> None:
    some = labelled([3, 1, 3, 9]).of(torch.tensor([9, 3]))
    assert some.labels.tolist() == [1, 1, 0] and some.rows.flatten().tolist() == [0, 2, 3]


def test_pictures_are_read_from_the_fetched_files(tmp_path) -> None:
    folder = tmp_path / "train/dataset-fashion-mnist"
    folder.mkdir(parents=True)
    pixels = np.arange(2 * 784, dtype=np.uint32).astype(np.uint8)
    images, labels = struct.pack(">4I", 0x803, 2, 28, 28) + pixels.tobytes(), struct.pack(">2I", 0x801, 2) + b"\x05\x02"
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    found = retrieval.read(tmp_path, "train")
    assert found.labels.tolist() == [5, 2]
    assert torch.equal(found.rows, torch.from_numpy(pixels.reshape(2, 784) / np.float32(255)))
    with pytest.raises(SystemExit, match=r"run scripts/fetch_data\.py fashion-mnist"):
        retrieval.read(tmp_path, "validation")


def test_the_record_of_the_retrieval_has_what_each_seed_gave() -> None:
    record = json.loads(retrieval.RECORD.read_text())
    for row in record["rows"]:
        for figures in (row["seen"], row["unseen"]):
            each = [{name: found["each"][seed] for name, found in figures.items()} for seed in range(3)]
            assert retrieval.summary(each) == figures


@pytest.mark.slow
def test_every_row_of_the_retrieval_is_measured(monkeypatch) -> None:
    monkeypatch.setattr(retrieval, "STEPS", 5)
    monkeypatch.setattr(retrieval, "BITS", (8,))
    labels = torch.arange(600) % 10
    pictures = retrieval.Pictures((torch.rand(600, 784) + labels[:, None] / 5) / 3, labels)
    rows = retrieval.run(pictures, pictures, 0)
    assert len(rows) == 7
    assert all(0 < row[part]["map"] <= 1 for row in rows for part in ("seen", "unseen"))


def test_squares_are_the_middle_and_segments_are_as_long_as_asked(tmp_path) -> None:
    image = np.zeros((300, 400, 3), np.uint8)
    image[150, 200] = 255
    (only,) = uncertainty.squares([Image.fromarray(image), Image.new("RGB", (255, 900))])
    assert only.shape == (1, 3, 256, 256)
    assert only[0, :, 128, 128].tolist() == [1, 1, 1] and float(only.sum()) == 3 - 3 * (256 * 256 - 1)
    soundfile.write(tmp_path / "a.flac", np.zeros((7 * 8000, 2)), 8000)
    assert [one.shape for one in uncertainty.segments([tmp_path / "a.flac"])] == 2 * [(1, 1, 48000)]


def test_another_speaker_is_one_whatever_else_is_fetched(tmp_path, monkeypatch) -> None:
    for package in ("festvox-ru", "asterisk-core-sounds-en-g722", "asterisk-core-sounds-fr-g722", "fillets-ng-data-cs"):
        (tmp_path / "speech/validation" / package).mkdir(parents=True)
        (tmp_path / "speech/validation" / package / "a.flac").touch()
    (tmp_path / "music").mkdir()
    (tmp_path / "music/song.flac").touch()
    monkeypatch.setattr(uncertainty, "segments", lambda paths: [path.parent.name for path in paths])
    assert uncertainty.recordings(tmp_path)["speech of another"] == ["asterisk-core-sounds-en-g722"]


def test_the_loss_is_the_share_of_the_variance_that_is_left() -> None:
    rows = torch.tensor([[0.0], [2.0], [4.0], [6.0]])
    assert suggest_codes.loss(rows, torch.tensor([[1.0], [5.0]])) == pytest.approx(1 / 5)
    assert suggest_codes.loss(rows, rows.mean(0, keepdim=True)) == pytest.approx(1)

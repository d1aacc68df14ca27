"""Files of vectors: what is read, how it is divided, and what is refused."""

import numpy
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from trainers.vectors.data import VectorData, VectorTable, content_hashes
from trainers.vectors.files import find_files, read


def rows(count: int = 40, dim: int = 3) -> Tensor:
    return torch.randn(count, dim)


def joined(loader) -> Tensor:  # type: ignore[no-untyped-def]
    return torch.cat([batch["vectors"] for batch in loader])


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", "<f8", "u1", "u2"])
def test_npy_of_any_real_dtype(dtype: str, tmp_path) -> None:
    array = (10 * rows().abs().numpy()).astype(dtype)
    numpy.save(tmp_path / "a.npy", array)
    data = VectorData(str(tmp_path / "a.npy"), batch_size=7)
    data.setup("predict")
    found = joined(data.predict_dataloader())
    assert found.dtype == torch.float32 and found.equal(torch.from_numpy(array.astype(numpy.float32)))


def test_safetensors_with_ids(tmp_path) -> None:
    vectors, ids = rows().bfloat16(), torch.arange(40) + 100
    save_file({"vectors": vectors, "ids": ids}, tmp_path / "a.safetensors")
    data = VectorData(str(tmp_path), id_column="ids", batch_size=64)
    (batch,) = data.predict_dataloader()
    assert batch["vectors"].equal(vectors.float()) and batch["name"] == [str(number) for number in range(100, 140)]


def test_parquet_of_rows_and_series(tmp_path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    series = torch.randn(6, 4, 3)
    table = {"item": [f"é{n}" for n in range(6)], "vector": series[:, 0].tolist(), "series": series.tolist()}
    parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet", row_group_size=4)
    file = read(tmp_path / "a.parquet", tmp_path, column="vector", id_column="item")
    assert file.ids == table["item"]
    torch.testing.assert_close(file.vectors.float(), series[:, 0], rtol=0, atol=0)
    assert read(tmp_path / "a.parquet", tmp_path, column="series").vectors.float().equal(series)
    with pytest.raises(ValueError, match="column=None, and there are vector, series: name one of them"):
        read(tmp_path / "a.parquet", tmp_path)
    ragged = pyarrow.table({"vector": [[1.0, 2.0], [1.0]]})
    parquet.write_table(ragged, tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"b.parquet: lists of 'vector' have 2 lengths, such as \[1, 2\]"):
        read(tmp_path / "b.parquet", tmp_path)
    parquet.write_table(pyarrow.table({"vector": [[1.0, 2.0], None]}), tmp_path / "c.parquet")
    with pytest.raises(ValueError, match="row 1 of 'vector' is empty"):
        read(tmp_path / "c.parquet", tmp_path)
    parquet.write_table(pyarrow.table({"vector": [[1.0, None]]}), tmp_path / "d.parquet")
    with pytest.raises(ValueError, match="1 of them missing"):
        read(tmp_path / "d.parquet", tmp_path)


def test_files_are_joined_and_any_samples_are_taken(tmp_path) -> None:
    parts = {"b/1.npy": rows(5), "a.npy": rows(3), "c.npy": rows(4)}
    (tmp_path / "b").mkdir()
    for name, part in parts.items():
        numpy.save(tmp_path / name, part.numpy())
    (tmp_path / "notes.txt").write_text("not vectors")
    table = VectorTable(tmp_path)
    whole = torch.cat([parts[name] for name in ("a.npy", "b/1.npy", "c.npy")])
    order = [11, 0, 4, 4, 2, 7]
    assert len(table) == 12 and table.batch(order).equal(whole[order])
    assert table.ids([0, 3, 11]) == ["a.npy:0", "b/1.npy:0", "c.npy:3"]


def test_series_and_windows_have_the_channels_first(tmp_path) -> None:
    numpy.save(tmp_path / "series.npy", torch.arange(24.0).view(2, 4, 3).numpy())
    table = VectorTable(tmp_path / "series.npy")
    assert table.batch([1])[0].equal(torch.arange(12.0, 24.0).view(4, 3).T) and table.steps == 4
    (tmp_path / "episodes").mkdir()
    for number, length in enumerate((9, 3, 4)):
        numpy.save(tmp_path / f"episodes/{number}.npy", (number + torch.arange(2.0 * length)).view(length, 2).numpy())
    windows = VectorTable(tmp_path / "episodes", window=4)
    assert len(windows) == 3 and windows.file_numbers().tolist() == [0, 0, 2]
    assert windows.batch([1])[0].equal(torch.arange(8.0, 16.0).view(4, 2).T)
    data = VectorData(str(tmp_path / "episodes"), window=4, validation_fraction=0.5)
    training, validation = (set(side.table.file_numbers()[side.samples].tolist()) for side in data.sides)
    assert training | validation == {0, 2} and not training & validation


def test_the_split_follows_the_content(tmp_path) -> None:
    vectors = torch.cat([rows(400), torch.zeros(5, 3), -torch.zeros(5, 3)])
    numpy.save(tmp_path / "a.npy", vectors.numpy())
    numpy.save(tmp_path / "b.npy", torch.cat([rows(50), vectors.flip(0)]).numpy())
    validation = [
        {tuple(row) for row in joined(data.val_dataloader()).tolist()}
        for data in (VectorData(str(tmp_path / name), validation_fraction=0.2) for name in ("a.npy", "b.npy"))
    ]
    assert 0.1 < len(validation[0]) / 400 < 0.3 and validation[0] <= validation[1]
    data = VectorData(str(tmp_path / "a.npy"))
    training = {tuple(row) for row in data.sides[0].table.batch(data.sides[0].samples).tolist()}
    held_out = {tuple(row) for row in data.sides[1].table.batch(data.sides[1].samples).tolist()}
    assert not training & held_out and len(set(content_hashes(vectors).tolist())) == 401


def test_training_is_a_stream_that_goes_on(tmp_path) -> None:
    numpy.save(tmp_path / "a.npy", rows(90).numpy())
    first, second = (VectorData(str(tmp_path / "a.npy"), batch_size=8, repeats=2) for _ in range(2))
    for data in (first, second):
        data.setup("fit")
    stream = first.train_dataloader()
    seen = joined(stream)
    assert len(stream) == 2 * len(first.sides[0]) // 8 and len(seen) == 8 * len(stream)
    second.load_state_dict(first.state_dict())
    assert joined(stream).equal(joined(second.train_dataloader()))
    assert first.facts() == second.facts()


def test_prediction_leaves_out_what_is_there(tmp_path) -> None:
    numpy.save(tmp_path / "a.npy", rows(9).numpy())
    data = VectorData(str(tmp_path / "a.npy"), batch_size=4)
    data.leave_out_predicted(lambda: {"0", "3"})
    assert [name for batch in data.predict_dataloader() for name in batch["name"]] == list("1245678")
    assert "9 samples of 3 dimensions" in data.describe_prediction()


def test_what_cannot_be_used_is_named(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist: give a file"):
        VectorData(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="holds no file of vectors"):
        find_files(tmp_path)
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(ValueError, match=r"a.csv must end in one of .npy"):
        find_files(tmp_path / "a.csv")
    broken = rows(20)
    broken[13, 1] = torch.nan
    numpy.save(tmp_path / "a.npy", broken.numpy())
    with pytest.raises(ValueError, match=r"row 13 of a.npy has NaN or infinity"):
        VectorData(str(tmp_path)).setup("fit")
    numpy.save(tmp_path / "a.npy", rows(20).numpy())
    numpy.save(tmp_path / "b.npy", rows(20, 4).numpy())
    with pytest.raises(ValueError, match=r"b.npy holds \(4,\) of each item and a.npy \(3,\)"):
        VectorData(str(tmp_path)).setup("fit")
    (tmp_path / "b.npy").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"b.npy is no readable npy file"):
        VectorData(str(tmp_path)).setup("fit")
    (tmp_path / "b.npy").unlink()
    with pytest.raises(ValueError, match="do not fill a batch of 64"):
        VectorData(str(tmp_path), batch_size=64).setup("fit")
    with pytest.raises(ValueError, match=r"column='x' names one"):
        VectorData(str(tmp_path), column="x").setup("fit")
    with pytest.raises(ValueError, match="window=30: no file"):
        VectorData(str(tmp_path), window=30).setup("fit")
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        VectorData(str(tmp_path), batch_size=0)
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        VectorData(str(tmp_path), window=0)

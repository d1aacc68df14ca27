"""What holds for folders of images and of recordings alike: which files are used, and what a sample depends on."""

import errno
import json
import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import numpy
import pytest
import soundfile
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from tests.trainers.pictures import draw_pictures
from tests.trainers.recordings import write_recordings
from tests.trainers.tiny import make_trainer
from trainers.audio import AudioFolderData
from trainers.data.files import split
from trainers.data.folder import FolderData
from trainers.image import ImageFolderData
from trainers.image.files import ImageFile
from vqkit.media.files import NOT_PLAIN
from vqkit.tokens.names import unescaped


@dataclass
class Kind:
    """A kind of files.

    Attributes:
        key: of the samples in a batch.
        noun: what messages call a file.
        suffix: of the files that `write` writes.
        write: writes so many files, `000`, `001` ..., each its own.
        data: the data module.
        small: its settings.
        changes: settings that change what prediction reads.
    """

    key: str
    noun: str
    suffix: str
    write: Callable[..., None]
    data: Callable[..., FolderData]
    small: dict[str, Any]
    changes: tuple[dict[str, Any], ...]

    def make(self, root: Path, **options: Any) -> FolderData:
        return self.data(str(root), **({"batch_size": 4, "num_workers": 0} | self.small | options))

    def ready(self, root: Path, **options: Any) -> FolderData:
        made = self.make(root, **options)
        made.setup("fit")
        return made

    def name(self, number: int) -> str:
        return f"{number:03d}{self.suffix}"


IMAGES = Kind(
    "image",
    "image",
    ".png",
    draw_pictures,
    ImageFolderData,
    {"resolution": 32},
    ({"resolution": 31}, {"white": 4095}),
)
RECORDINGS = Kind(
    "audio",
    "recording",
    ".flac",
    partial(write_recordings, suffix=".flac"),
    AudioFolderData,
    {"sample_rate": 8000, "segment_seconds": 0.25, "gain_db": (-6, 0)},
    ({"sample_rate": 16000}, {"channels": 2}, {"max_evaluation_seconds": 1.0}),
)
each = pytest.mark.parametrize("kind", [IMAGES, RECORDINGS], ids=lambda kind: kind.noun)


def names(loader) -> list[str]:
    return [name for batch in loader for name in batch["name"]]


def stream(data: FolderData, key: str, batches: int) -> tuple[Tensor, list[str]]:
    taken, seen = [], []
    while len(taken) < batches:
        for batch in data.train_dataloader():
            taken.append(batch[key])
            seen += batch["name"]
            if len(taken) == batches:
                break
    return torch.stack(taken), seen


# ---- training samples


@each
def test_samples_do_not_depend_on_workers_cache_or_global_seeds(kind, tmp_path):
    kind.write(tmp_path, 12)
    expected, seen = stream(kind.ready(tmp_path), kind.key, 9)
    for seed, options in enumerate([{"num_workers": 2}, {"cache_bytes": 0}, {"cache_bytes": 40000}]):
        torch.manual_seed(seed)
        numpy.random.seed(seed)
        other, other_names = stream(kind.ready(tmp_path, **options), kind.key, 9)
        assert torch.equal(other, expected)
        assert other_names == seen
    other, _ = stream(kind.ready(tmp_path, seed=1), kind.key, 9)
    assert not torch.equal(other, expected)


@each
@pytest.mark.parametrize("workers", [0, 2])
def test_files_that_fail_when_they_are_read_are_replaced_in_training_and_named_once(kind, workers, tmp_path):
    kind.write(tmp_path / "train", 9)
    kind.write(tmp_path / "validation", 3, seed=50)
    spoilt = [tmp_path / folder / f"0015{kind.suffix}" for folder in ("train", "validation")]
    for path, number in zip(spoilt, (2, 1), strict=True):  # their headers are whole
        if kind is RECORDINGS:
            soundfile.write(path, numpy.full(8000 + number, numpy.nan), 8000, format="WAV", subtype="FLOAT")
        else:
            whole = (path.parent / kind.name(number)).read_bytes()
            path.write_bytes(whole[: len(whole) // 2])
    options = {"validation_root": str(tmp_path / "validation"), "cache_bytes": 0, "batch_size": 2, "seed": 1}
    data = kind.ready(tmp_path / "train", num_workers=workers, **options)
    with pytest.warns(UserWarning, match=rf"0015.* is replaced by the next {kind.noun}") as caught:
        _, seen = stream(data, kind.key, 15)
    assert len(caught) == 1 and len(seen) == 30 and spoilt[0].name not in seen
    with pytest.warns(UserWarning, match=r"0015.* is left out"):
        assert names(data.val_dataloader()) == names(data.test_dataloader()) == [kind.name(n) for n in range(3)]
    assert sorted(data.skipped) == [str(path) for path in spoilt]
    with pytest.warns(UserWarning):
        assert stream(kind.ready(tmp_path / "train", **options), kind.key, 15)[1] == seen


# ---- what a scan meets

AWKWARD = [
    b"caf\xe9",
    b"caf\xe8",
    b"caf\\xe9",
    "caf\N{LATIN SMALL LETTER E WITH ACUTE}".encode(),
    b"cafe\xcc\x81",  # the same letter as two
    b"new\nline\ttab",
    b"-rf",
    b"\"quotes'",
    b" space ",
    b"next\xc2\x85line\xe2\x80\xa8",
    b"x" * 250,
]


@each
def test_names_of_any_bytes_are_kept_apart_and_shown_as_text(kind, tmp_path):
    kind.write(tmp_path, len(AWKWARD))
    for number, name in enumerate(AWKWARD):
        (tmp_path / kind.name(number)).rename(tmp_path / os.fsdecode(name + kind.suffix.upper().encode())[:255])
    data = kind.make(tmp_path)
    found = names(data.predict_dataloader())
    assert not data.skipped and len(set(found)) == len(AWKWARD)
    assert {unescaped(name) for name in found} == set(os.listdir(tmp_path))
    assert all(name.isprintable() or name.startswith("next") for name in found)
    assert "\n".join(found).encode().count(b"\n") == len(AWKWARD) - 1
    data.leave_out_predicted(lambda: set(found[1:]))
    assert names(data.predict_dataloader()) == found[:1]
    assert set(stream(kind.ready(tmp_path, batch_size=1), kind.key, 20)[1]) <= set(found)
    (broken,) = (path for path in tmp_path.iterdir() if path.name.startswith("new"))
    broken.write_bytes(b"")
    with pytest.warns(UserWarning, match=r"new\\x0aline\\x09tab"):
        kind.make(tmp_path).setup("predict")


@each
def test_what_a_scan_cannot_look_into_is_named_with_the_reason(kind, tmp_path, monkeypatch):
    kind.write(tmp_path / "photos", 3)
    (tmp_path / "closed").mkdir()
    (tmp_path / "photos" / "nowhere").symlink_to(tmp_path / "gone")
    (tmp_path / "photos" / f"itself{kind.suffix}").symlink_to(tmp_path / "photos" / f"itself{kind.suffix}")
    (tmp_path / "photos" / "back").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "photos" / f"pipe{kind.suffix}")
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(tmp_path)  # the path of a socket is short
        listening.bind(f"socket{kind.suffix}")
    scandir, closed = os.scandir, tmp_path / "closed"

    def refusing(folder):  # the superuser may read all
        if Path(folder) == closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    folder = kind.make(tmp_path).find(tmp_path)
    assert [file.name for file in folder.files] == [f"photos/{kind.name(number)}" for number in range(3)]
    reasons = {Path(path).relative_to(tmp_path).as_posix(): reason for path, reason in folder.skipped.items()}
    assert reasons == {
        "closed": "a folder that cannot be read: Permission denied",
        "photos/nowhere": "a link that leads nowhere: No such file or directory",
        f"photos/itself{kind.suffix}": "a link that leads nowhere: Too many levels of symbolic links",
        f"photos/pipe{kind.suffix}": NOT_PLAIN,
        f"socket{kind.suffix}": NOT_PLAIN,
    }


@each
def test_a_file_that_may_not_be_read_is_named_with_the_reason(kind, tmp_path, monkeypatch):
    kind.write(tmp_path, 3)
    opened = os.open

    def refusing(path, *arguments):
        if Path(path).name == kind.name(1):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *arguments)

    monkeypatch.setattr(os, "open", refusing)
    folder = kind.make(tmp_path).find(tmp_path)
    assert [file.name for file in folder.files] == [kind.name(0), kind.name(2)]
    assert folder.skipped == {str(tmp_path / kind.name(1)): "cannot be read: Permission denied"}


AFTER_THE_SCAN = {"pipe": os.mkfifo, "folder": os.mkdir, "empty": Path.touch, "gone": lambda path: None}


@each
@pytest.mark.parametrize("becomes", AFTER_THE_SCAN)
def test_a_file_that_stops_being_one_after_the_scan_is_replaced_and_named_once(kind, becomes, tmp_path):
    kind.write(tmp_path, 12)
    data = kind.ready(tmp_path, cache_bytes=0, batch_size=2)
    path = tmp_path / data.initialization_dataloader().dataset.store.files[0].name
    path.unlink()
    AFTER_THE_SCAN[becomes](path)
    with pytest.warns(UserWarning, match=f"{path.name} is replaced by the next {kind.noun}: ") as caught:
        _, seen = stream(data, kind.key, 12)
    assert len(caught) == 1 and path.name not in seen


@each
def test_what_is_left_out_is_said_once_and_written_whole(kind, tmp_path):
    kind.write(tmp_path / "files", 9)
    for number in range(7):
        (tmp_path / "files" / f"text{number}{kind.suffix}").write_text("hello")
    whole = (tmp_path / "files" / kind.name(3)).read_bytes()
    (tmp_path / "files" / f"zero{kind.suffix}").write_bytes(b"")
    data = kind.make(tmp_path / "files", cache_bytes=0, batch_size=2)
    data.trainer = SimpleNamespace(default_root_dir=str(tmp_path / "run"))
    with pytest.warns(
        UserWarning, match=r"8 files are left out, \d .*; \.\.\.; all of them: .*left_out_fit\.json$"
    ) as caught:
        text = data.describe()
        data.setup("fit")
    assert len(caught) == 1 and "text" not in text and "left out" not in text
    record = tmp_path / "run" / "left_out_fit.json"
    written = json.loads(record.read_text())
    assert written["left_out"] == data.skipped and len(data.skipped) == 8 and not written["replaced"]
    (tmp_path / "files" / kind.name(3)).write_bytes(whole[: len(whole) // 2])  # after the scan
    with pytest.warns(UserWarning, match=rf"{kind.name(3)} is (replaced|left out)"):
        stream(data, kind.key, 12)
        names(data.val_dataloader())
    written = json.loads(record.read_text())
    late = {path for side in written.values() for path in side} - {path for path in data.skipped if "003" not in path}
    assert late == {str(tmp_path / "files" / kind.name(3))}
    for path in data.skipped:
        Path(path).unlink()
    data = kind.make(tmp_path / "files")
    data.trainer = SimpleNamespace(default_root_dir=str(tmp_path / "run"))
    data.setup("fit")
    assert not record.exists(), "the list of an earlier run"


@pytest.mark.parametrize("stage", TrainerFn)
def test_the_list_of_what_is_left_out_is_called_as_the_stage(stage, tmp_path):
    """Lightning passes its own name of a stage; a dry run writes nothing."""
    IMAGES.write(tmp_path / "files", 9)
    (tmp_path / "files" / "zero.png").write_bytes(b"")
    trainer = SimpleNamespace(default_root_dir=str(tmp_path / "run"), fast_dev_run=1)
    for expected in ([], [f"left_out_{stage.value}.json"]):
        data = IMAGES.make(tmp_path / "files")
        data.trainer = trainer
        with pytest.warns(UserWarning, match="1 files are left out"):
            data.setup(stage)
        assert [path.name for path in tmp_path.glob("run/*")] == expected
        trainer.fast_dev_run = False


@each
def test_a_list_that_cannot_be_written_does_not_end_training(kind, tmp_path):
    kind.write(tmp_path / "files", 9)
    (tmp_path / "run").write_text("a file where the folder should be")
    data = kind.make(tmp_path / "files", cache_bytes=0, batch_size=2)
    data.trainer = SimpleNamespace(default_root_dir=str(tmp_path / "run"))
    with pytest.warns(UserWarning) as caught:
        data.setup("fit")
        for number in (3, 4):
            (tmp_path / "files" / kind.name(number)).write_bytes(b"")
        _, seen = stream(data, kind.key, 12)
        names(data.val_dataloader())
    assert sum("what is left out is not listed: " in str(warning.message) for warning in caught) == 1
    assert len(seen) == 24 and len(data.skipped) == 2


# ---- the split


@each
def test_the_split_follows_the_content_and_keeps_its_sides_when_files_are_added(kind, tmp_path):
    kind.write(tmp_path / "first", 40)
    chosen = names(kind.ready(tmp_path / "first", validation_fraction=0.3).val_dataloader())
    assert 4 <= len(chosen) <= 20
    for number in range(40):
        side = "chosen" if kind.name(number) in chosen else "others"
        target = tmp_path / "second" / side / kind.name(99 - number)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "first" / kind.name(number), target)
    found = names(kind.ready(tmp_path / "second", validation_fraction=0.3).val_dataloader())
    assert {Path(name).parent.name for name in found} == {"chosen"} and len(found) == len(chosen)
    kind.write(tmp_path / "first" / "added", 20, seed=40)
    grown = names(kind.ready(tmp_path / "first", validation_fraction=0.3).val_dataloader())
    assert [name for name in grown if not name.startswith("added/")] == chosen


@each
def test_identical_files_are_on_one_side(kind, tmp_path):
    kind.write(tmp_path / "one", 20)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    validation = names(kind.ready(tmp_path, validation_fraction=0.4).val_dataloader())
    assert 0 < len(validation) < 40
    assert [name[4:] for name in validation if name < "two"] == [name[4:] for name in validation if name > "two"]


@pytest.mark.parametrize(("contents", "expected"), [("fe", "e"), ("01", "0")])
def test_each_side_has_a_file(contents, expected):
    files = [ImageFile(f"{number}.png", 1, 1, 16 * content) for number, content in enumerate(contents)]
    training, validation = split(files, [file.content for file in files], 0.2, Path("photos"), noun="image")
    assert [file.content for file in validation] == [16 * expected]
    assert len(training) == 1


def hash_on_rank(rank: int, folder: Path, cache_bytes: int) -> str:
    data = IMAGES.make(folder / "a", validation_root=str(folder / "b"), cache_bytes=cache_bytes, batch_size=2)
    data.setup("test")
    list(data.test_dataloader())
    return data.evaluation_hash()


def test_the_hash_is_of_the_files_that_were_measured(tmp_path):
    """Whether one is found to be broken before or while it is read."""
    break_one_of_two_folders(tmp_path)
    with pytest.warns(UserWarning, match="left out"):
        hashes = [hash_on_rank(0, tmp_path, cache_bytes) for cache_bytes in (0, 2**20)]
    (tmp_path / "b/001.png").unlink()
    assert hashes == [hash_on_rank(0, tmp_path, 0)] * 2


@pytest.mark.slow
def test_all_ranks_leave_out_of_the_hash_what_one_could_not_read(tmp_path, rank_pair):
    break_one_of_two_folders(tmp_path)
    hashes = rank_pair(hash_on_rank, tmp_path, 0)
    (tmp_path / "b/001.png").unlink()
    assert hashes == [hash_on_rank(0, tmp_path, 0)] * 2


def break_one_of_two_folders(folder: Path) -> None:
    draw_pictures(folder / "a", 4)
    draw_pictures(folder / "b", 6, seed=50)
    broken = folder / "b/001.png"
    broken.write_bytes(broken.read_bytes()[:600])


@each
def test_files_in_both_folders_are_announced(kind, tmp_path):
    kind.write(tmp_path / "a", 5)
    kind.write(tmp_path / "b", 2)
    data = kind.make(tmp_path / "a", validation_root=str(tmp_path / "b"))
    with pytest.warns(UserWarning, match=f"2 of 2 validation {kind.noun}s are training {kind.noun}s too, 000"):
        data.setup("fit")
    assert names(data.val_dataloader()) == [kind.name(0), kind.name(1)]


# ---- prediction


@each
def test_predicted_names_are_left_out_and_the_hash_follows_the_data(kind, tmp_path):
    kind.write(tmp_path, 4)
    data = kind.make(tmp_path)
    data.leave_out_predicted(lambda: {kind.name(1)})
    assert names(data.predict_dataloader()) == [kind.name(number) for number in (0, 2, 3)]
    data.leave_out_predicted(lambda: {kind.name(number) for number in range(4)})
    assert len(data.predict_dataloader()) == 0
    before = data.predict_hash()
    assert kind.make(tmp_path).predict_hash() == before
    assert all(kind.make(tmp_path, **options).predict_hash() != before for options in kind.changes)
    kind.write(tmp_path, 1, seed=77)
    assert kind.make(tmp_path).predict_hash() != before


# ---- mistakes


@each
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_root": "nowhere"}, r"validation_root='nowhere' is not a folder"),
        ({"batch_size": 0}, r"batch_size must be at least 1, got 0"),
        ({"validation_fraction": 1.0}, r"validation_fraction must lie between 0 and 1, got 1.0"),
    ],
)
def test_wrong_arguments_stop_at_construction(kind, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        kind.make(tmp_path, **options)


@each
def test_folders_with_too_little_are_named(kind, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"root='.*missing' is not a folder"):
        kind.make(tmp_path / "missing")
    (tmp_path / "readme.txt").touch()
    with pytest.raises(ValueError, match=rf"There is no usable {kind.noun} under .*1 other files.*at least \d"):
        kind.make(tmp_path).setup("fit")
    kind.write(tmp_path, 1)
    with pytest.raises(ValueError, match=f"1 different usable {kind.noun}"):
        kind.make(tmp_path).setup("fit")
    kind.write(tmp_path, 4)
    with pytest.raises(ValueError, match=rf"do not fill a batch of 99 .*raise repeats \(now 1\).*add {kind.noun}s"):
        kind.make(tmp_path, batch_size=99).setup("fit")
    kind.ready(tmp_path, batch_size=16, repeats=16)
    monkeypatch.setattr("vqkit.distributed.world_size", lambda: 9)
    with pytest.raises(ValueError, match=rf"validation {kind.noun}\(s\) cannot be divided among 9 ranks"):
        kind.make(tmp_path, batch_size=1, repeats=16).setup("fit")


# ---- under Lightning


class Sums(lightning.LightningModule):
    def __init__(self, key: str) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.sums: list[float] = []
        self.key = key

    def training_step(self, batch):
        self.sums.append(float(batch[self.key].sum()))
        return (self.weight - batch[self.key].mean()).square()

    def validation_step(self, batch):
        self.log("validation", batch[self.key].mean(), batch_size=len(batch[self.key]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@each
@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*:FutureWarning")
def test_fit_continues_amid_a_pass_with_the_same_samples(kind, tmp_path):
    kind.write(tmp_path / "files", 12)

    def fit(steps: int, checkpoint: Path | None = None) -> tuple[Sums, lightning.Trainer]:
        task, trainer = Sums(kind.key), make_trainer(max_steps=steps)
        trainer.fit(task, datamodule=kind.make(tmp_path / "files", repeats=2), ckpt_path=checkpoint)
        return task, trainer

    whole, _ = fit(17)
    first, trainer = fit(5)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    second, _ = fit(17, tmp_path / "last.ckpt")
    assert first.sums + second.sums == whole.sums
    assert torch.equal(second.weight, whole.weight)


@each
@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*:FutureWarning")
def test_overfit_batches_is_refused(kind, tmp_path):
    kind.write(tmp_path, 12)
    with pytest.raises(ValueError, match="overfit_batches=1 repeats the same batches"):
        make_trainer(overfit_batches=1, max_steps=1).fit(Sums(kind.key), datamodule=kind.make(tmp_path))

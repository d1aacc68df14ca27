import inspect
import json
import os
import pickle
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.saving.failing import failing
from vqkit.saving.pretrained import Pretrained
from vqkit.version import __version__

ALLOW = ("vqkit", __name__)


class Model(Pretrained, nn.Module):
    def __init__(self, dim: int = 3, *, scale: float = 1.0) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)
        self.tied = nn.Linear(dim, dim, bias=False)
        self.tied.weight = self.linear.weight
        self.norm = nn.BatchNorm1d(dim)
        self.scale = scale
        self.register_buffer("counts", torch.arange(dim))
        self.register_buffer("nothing", torch.zeros(0, dim))
        self.register_buffer("transposed", torch.randn(dim, 2).mT)
        self.register_buffer("alias", self.transposed)
        self.steps = 0

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.steps)

    def set_extra_state(self, state: Tensor) -> None:
        self.steps = int(state)


class Child(Model):
    pass


class Other(Pretrained, nn.Module):
    pass


class PickledState(Pretrained, nn.Module):
    def get_extra_state(self) -> dict[str, int]:
        return {"steps": 3}


class Grown(Pretrained, nn.Module):
    """Takes a state of any length, and one that was named otherwise before."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("memory", torch.zeros(0))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *arguments: Any) -> None:
        if f"{prefix}notes" in state_dict:
            state_dict[f"{prefix}memory"] = state_dict.pop(f"{prefix}notes")
        self.memory = torch.empty_like(state_dict[f"{prefix}memory"])
        super()._load_from_state_dict(state_dict, prefix, *arguments)


class Masked(Pretrained, nn.Module):
    """Has a constant that is not finite, and a constructor that reads values."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))
        self.size = float(self.mask.shape[0] - self.mask.isfinite().sum())


def filled_model() -> Model:
    torch.manual_seed(0)
    model = Model(scale=0.5)
    model.norm(torch.randn(4, 3))
    model.steps = 7
    return model


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    filled_model().save_pretrained(tmp_path / "new" / "model")
    return tmp_path / "new" / "model"


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_everything_comes_back(saved: Path) -> None:
    model, restored = filled_model(), Model.from_pretrained(saved, allow=ALLOW)
    assert restored.scale == 0.5
    assert restored.steps == 7
    assert not any(module.training for module in restored.modules())
    expected, actual = model.state_dict(), restored.state_dict()
    assert expected.keys() == actual.keys()
    for key, value in expected.items():
        assert torch.equal(actual[key], value), key
        assert actual[key].dtype == value.dtype
    assert restored.norm.num_batches_tracked == 1


def test_shared_tensors_stay_shared_and_can_be_saved(saved: Path) -> None:
    restored = Model.from_pretrained(saved, allow=ALLOW)
    assert restored.tied.weight is restored.linear.weight
    assert restored.alias.data_ptr() == restored.transposed.data_ptr()


def test_the_configuration_is_readable_and_versioned(saved: Path) -> None:
    text = (saved / "config.json").read_text()
    mark = json.loads(text)["saved_together"]
    assert json.loads(text) == {
        "format": "vqkit",
        "format_version": 4,
        "vqkit_version": __version__,
        "class_path": f"{__name__}.Model",
        "init_args": {"dim": 3, "scale": 0.5},
        "saved_together": mark,
    }
    filled_model().save_pretrained(saved)
    assert (saved / "config.json").read_text() == text
    assert '\n  "format_version": 4,\n' in text
    assert {path.name for path in saved.iterdir()} == {"config.json", "model.safetensors"}
    plain = saved / "plain"
    plain.touch()  # the permissions that the user's umask gives
    assert {path.stat().st_mode for path in saved.iterdir()} == {plain.stat().st_mode}


def test_no_pickle_is_read(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("pickle")

    for owner, name in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
        monkeypatch.setattr(owner, name, refuse)
    Model.from_pretrained(saved, allow=ALLOW)
    (saved / "model.safetensors").unlink()
    (saved / "pytorch_model.bin").write_bytes(b"never read")
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing"):
        Model.from_pretrained(saved, allow=ALLOW)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_module_of_another_floating_type_comes_back_in_it(dtype: torch.dtype, tmp_path: Path) -> None:
    model = filled_model().to(dtype)
    model.save_pretrained(tmp_path)
    restored = Model.from_pretrained(tmp_path, allow=ALLOW)
    assert restored.linear.weight.dtype == dtype
    assert torch.equal(restored.linear.weight, model.linear.weight)
    assert restored.counts.dtype == torch.int64


@pytest.mark.parametrize(("call", "after"), [("fsync", 0), ("fsync", 1), ("fsync", 2), ("replace", 0)])
def test_saving_again_replaces_and_a_full_disk_leaves_the_old_model(
    saved: Path, call: str, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    model = filled_model()
    model.steps = 9
    with monkeypatch.context() as context:
        context.setattr(os, call, failing(getattr(os, call), after=after))
        with pytest.raises(OSError, match=r"was not written \(No space left on device\): free some space"):
            model.save_pretrained(saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    model.save_pretrained(saved)
    assert Model.from_pretrained(saved, allow=ALLOW).steps == 9


def test_a_pair_that_was_not_saved_together_is_refused(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kill leaves that comes between the moves of the two files."""
    model = filled_model()
    model.steps = 9
    with monkeypatch.context() as context, pytest.raises(OSError, match="was not written"):
        context.setattr(os, "replace", failing(os.replace, after=1))
        model.save_pretrained(saved)
    with pytest.raises(ValueError, match=r"model\.safetensors: was saved with another config\.json .* save the model"):
        Model.from_pretrained(saved, allow=ALLOW)


def test_state_that_would_need_pickle_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'_extra_state' is a dict.*let get_extra_state return a tensor"):
        PickledState().save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="argument 'scale' cannot be written"):
        Model(scale=torch.ones(())).save_pretrained(tmp_path / "model")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("version", [5, 0, "1", None])
def test_an_unknown_format_version_is_refused_with_words(saved: Path, version: Any) -> None:
    rewrite(saved / "config.json", format_version=version, vqkit_version="9.0")
    message = f"format_version {re.escape(repr(version))} .*vqkit 9.0.* reads versions 1 to 4: update vqkit"
    with pytest.raises(ValueError, match=message):
        Model.from_pretrained(saved, allow=ALLOW)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "holds a list: expected a JSON object"),
        ("[" * 100_000, "not valid JSON"),
        ('{"dim": NaN}', "NaN is no number of JSON"),
        ('{"model_type": "bert"}', "was not written by save_pretrained"),
        ('{"format": "vqkit", "format_version": 1}', "class_path=None"),
        ('{"format": "vqkit", "format_version": 3, "class_path": "os.system"}', "refused"),
    ],
)
def test_a_damaged_or_foreign_configuration_is_refused(saved: Path, content: str, message: str) -> None:
    (saved / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        Model.from_pretrained(saved, allow=ALLOW)


def test_classes_must_be_allowed_and_expected(saved: Path) -> None:
    with pytest.raises(ValueError, match="refused"):
        Model.from_pretrained(saved)
    for wrong in (Other, Child):
        with pytest.raises(ValueError, match=rf"describes a Model, which is no {wrong.__name__}: call Model\.from_pre"):
            wrong.from_pretrained(saved, allow=ALLOW)
    Child().save_pretrained(saved)
    assert type(Model.from_pretrained(saved, allow=ALLOW)) is Child


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", None])
def test_damaged_weights_are_refused(saved: Path, content: bytes | None) -> None:
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-3] if content is None else content)
    with pytest.raises(ValueError, match=r"model\.safetensors: is damaged or of another kind"):
        Model.from_pretrained(saved, allow=ALLOW)


@pytest.mark.parametrize(
    ("key", "tensor", "message"),
    [
        ("linear.weight", None, r"'linear.weight' is missing: config\.json asks for shape \(3, 3\)"),
        ("_extra_state", None, "'_extra_state' is missing"),
        ("surplus", torch.zeros(1), r"'surplus' of shape \(1,\) is unexpected"),
        ("linear.weight", torch.zeros(2, 3), r"'linear.weight' has shape \(2, 3\): config\.json asks for \(3, 3\)"),
        ("linear.weight", torch.full((3, 3), torch.nan), "'linear.weight' holds NaN or infinity in 9 of 9 numbers"),
        ("norm.running_var", torch.tensor([1, torch.inf, 2]), "'norm.running_var' holds NaN or infinity in 1 of 3"),
        ("linear.bias", torch.zeros(3, dtype=torch.int32), "'linear.bias' holds torch.int32: expected torch.float64"),
        ("linear.bias", torch.zeros(3, dtype=torch.bool), "'linear.bias' holds torch.bool: expected torch.float64"),
        ("linear.bias", torch.zeros(3, dtype=torch.float8_e5m2), "holds torch.float8_e5m2: expected torch.float64"),
        ("counts", torch.zeros(3), "'counts' holds torch.float32: expected torch.int64"),
    ],
)
def test_weights_must_fit_exactly(saved: Path, key: str, tensor: Tensor | None, message: str) -> None:
    state = load_file(saved / "model.safetensors")
    state.pop(key, None)
    save_file(state if tensor is None else state | {key: tensor}, saved / "model.safetensors")
    with pytest.raises(ValueError, match=rf"model\.safetensors: entry .*{message}"):
        Model.from_pretrained(saved, allow=ALLOW)


@pytest.mark.parametrize("name", ["memory", "notes"])
def test_a_class_of_ones_own_may_load_by_itself(name: str, tmp_path: Path) -> None:
    Grown().save_pretrained(tmp_path)
    save_file({name: torch.arange(7.0)}, tmp_path / "model.safetensors")
    assert torch.equal(Grown.from_pretrained(tmp_path, allow=ALLOW).memory, torch.arange(7.0))
    save_file({name: torch.arange(7.0), "other": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors: .*other"):
        Grown.from_pretrained(tmp_path, allow=ALLOW)


def test_more_entries_than_any_model_has_are_refused(saved: Path) -> None:
    save_file({str(number): torch.zeros(1) for number in range(2**14 + 1)}, saved / "model.safetensors")
    with pytest.raises(ValueError, match="has 16385 entries: expected at most 16384"):
        Model.from_pretrained(saved, allow=ALLOW)


def test_constants_that_are_not_finite_are_those_of_the_constructor(tmp_path: Path) -> None:
    Masked().save_pretrained(tmp_path)
    assert torch.equal(Masked.from_pretrained(tmp_path, allow=ALLOW).mask, Masked().mask)
    save_file({"mask": torch.full((3, 3), -torch.inf)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="'mask' holds NaN or infinity in 9 of 9 numbers"):
        Masked.from_pretrained(tmp_path, allow=ALLOW)


def test_missing_directories_and_files_are_named(saved: Path, tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        Model.from_pretrained(tmp_path)
    for name in (tmp_path / "none", str(tmp_path / "none"), "./runs/none", "none", "a/b/c", "../none"):
        with pytest.raises(FileNotFoundError, match="neither an existing directory nor a hub id"):
            Model.from_pretrained(name)
    with pytest.raises(FileNotFoundError, match=f"{saved} below it is one"):
        Model.from_pretrained(saved.parent)
    monkeypatch.chdir(saved.parent.parent)
    name = f"{saved.parent.name}/other"
    words = f"the folders in {saved.parent} are {saved.name}; for the hub's {name!r} give revision='main'"
    with pytest.raises(FileNotFoundError, match=re.escape(words)):
        Model.from_pretrained(name)
    with pytest.raises(ValueError, match="revision='main' is for hub ids"):
        Model.from_pretrained(tmp_path, revision="main")


def test_a_module_that_is_none_is_refused(saved: Path) -> None:
    with pytest.raises(TypeError, match=r"not a torch\.nn\.Module"):
        Pretrained.from_pretrained(saved, allow=ALLOW)


class Hub(SimpleNamespace):
    """Stands for huggingface_hub: one repository in a local folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder=folder, calls=[])

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        self.calls.append(("create_repo", repo_id, private, exist_ok))

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> str:
        self.calls.append(("upload_folder", repo_id, commit_message))
        self.folder.mkdir()
        for name in os.listdir(folder_path):
            (self.folder / name).write_bytes((Path(folder_path) / name).read_bytes())
        return f"https://hub/{repo_id}"

    def snapshot_download(self, repo_id: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        self.calls.append(("snapshot_download", repo_id, revision, allow_patterns))
        return str(self.folder)


def test_the_hub_gives_back_what_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(tmp_path / "hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)  # type: ignore[arg-type]
    assert filled_model().push_to_hub("user/my-model_1.0", private=True, commit_message="first") == (
        "https://hub/user/my-model_1.0"
    )
    restored = Model.from_pretrained("user/my-model_1.0", revision="main", allow=ALLOW)
    assert restored.steps == 7
    assert hub.calls == [
        ("create_repo", "user/my-model_1.0", True, True),
        ("upload_folder", "user/my-model_1.0", "first"),
        ("snapshot_download", "user/my-model_1.0", "main", ["config.json", "model.safetensors"]),
    ]


@pytest.mark.parametrize("error", [OSError("401\nlong"), ValueError("too long an id")])
def test_what_the_hub_has_not_is_said_in_a_line(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=download))
    words = f"'user/none' is not a directory in {Path.cwd()}, and the hub gave no such model: {type(error).__name__}: "
    with pytest.raises(FileNotFoundError, match=re.escape(words)) as raised:
        Model.from_pretrained("user/none")
    assert "\n" not in str(raised.value)


def test_our_calls_fit_the_installed_hub_library() -> None:
    hub = pytest.importorskip("huggingface_hub")
    inspect.signature(hub.create_repo).bind("user/model", private=True, exist_ok=True)
    inspect.signature(hub.upload_folder).bind(repo_id="user/model", folder_path=".", commit_message="message")
    inspect.signature(hub.snapshot_download).bind("user/model", revision=None, allow_patterns=["config.json"])


def test_without_the_hub_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"'user/model' is not a directory.*pip install \"vqkit\[hub\]\""):
        Model.from_pretrained("user/model")
    with pytest.raises(ImportError, match=r'pip install "vqkit\[hub\]"'):
        Model().push_to_hub("user/model")

"""What `docs/security.md` promises of files that somebody else wrote."""

import importlib
import json
import pkgutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import vqkit
from tests.contract.cases import CASES
from vqkit import FSQ, LFQ, BaseQuantizer, Configured, Quantizer, Tokenizer
from vqkit.backbones.conv2d import ConvDecoder2d, ConvEncoder2d
from vqkit.saving import pretrained
from vqkit.saving.config import _class_path, from_config, resolve_class
from vqkit.saving.sizes import FREE_NUMBERS, FREE_TENSORS, TENSORS_PER_ENTRY, Bounded, check_entries

# Not the compiled search, which is no module.
MODULES = sorted(name for _, name, _ in pkgutil.walk_packages(vqkit.__path__, "vqkit.") if "-" not in name)

WALK = """
import importlib, sys
import torch, einops, safetensors.torch
try:
    import triton, triton.language
except ModuleNotFoundError:
    pass
done = []
def watch(event, arguments):
    writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    if event in ("subprocess.Popen", "os.system", "os.exec", "os.fork", "os.posix_spawn", "socket.connect") or writes:
        done.append((event, arguments))
sys.dont_write_bytecode = True
sys.addaudithook(watch)
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        assert error.name.partition(".")[0] not in ("vqkit", "trainers"), error
assert not done, done
"""


def test_no_module_does_anything_when_imported() -> None:
    """`__main__` modules included: no process, no connection, no file."""
    assert "vqkit.kernels.native.__main__" in MODULES
    done = subprocess.run([sys.executable, "-c", WALK, *MODULES], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


LOOK_UP = """
import sys
from vqkit.saving.config import BUILDABLE, resolve_class
before = set(sys.modules)
for name in sys.argv[1:]:
    try:
        resolve_class(f"{name}.X")
    except ValueError as error:
        assert str(error).startswith(f"class_path='{name}.X' is "), error  # refused, or called otherwise
    else:
        raise AssertionError(name)
imported = {name for name in set(sys.modules) - before if name.startswith("vqkit")}
needed = ("vqkit.backbones.", "vqkit.saving.")  # by those that are listed
assert all(name in BUILDABLE or name.startswith(needed) for name in imported), imported
"""


def test_a_configuration_imports_listed_modules_only() -> None:
    done = subprocess.run([sys.executable, "-c", LOOK_UP, *MODULES], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def concrete_classes(base: type) -> Iterator[type]:
    for derived in base.__subclasses__():
        if derived.__module__.startswith("vqkit.") and not getattr(derived, "__abstractmethods__", None):
            yield derived
        yield from concrete_classes(derived)


BASES = {
    "BinaryQuantizer",
    "CompositeQuantizer",
    "DepthDropout",
    "FixedGrid",
    "Part",
    "Penalty",
    "Pretrained",
    "SampleDropout",
}


def test_every_class_that_can_be_saved_is_found_again() -> None:
    for name in MODULES:
        if not name.startswith(("vqkit.kernels", "vqkit.deployment")):
            importlib.import_module(name)
    found = {derived for derived in concrete_classes(Configured) if derived.__name__ not in BASES}
    assert len(found) > len(BASES)
    for derived in found:
        assert resolve_class(_class_path(derived, "")) is derived


def test_packages_of_ones_own_are_imported_as_far_as_they_are_named(tmp_path: Path, monkeypatch: Any) -> None:
    """`allow` is the opt-in; a file cannot start the other modules of an allowed package."""
    package = tmp_path / "mine"
    (package / "parts").mkdir(parents=True)
    part = "from vqkit import Configured\nclass Part(Configured):\n    pass\n"
    (package / "__init__.py").write_text(part)
    (package / "parts" / "__init__.py").write_text(part)
    (package / "train.py").write_text("raise SystemExit('started')")
    monkeypatch.syspath_prepend(tmp_path)
    allow = ("vqkit", "mine")
    assert resolve_class("mine.Part", allow=allow).__module__ == "mine"
    for path in ("mine.train.Part", "mine.parts.Part"):
        with pytest.raises(ValueError, match=r"is not imported: import it, or name it in allow="):
            resolve_class(path, allow=allow)
    assert resolve_class("mine.parts.Part", allow=("mine.parts",)).__module__ == "mine.parts"
    assert resolve_class("mine.parts.Part", allow=allow).__module__ == "mine.parts"
    for name in ("mine", "mine.parts"):
        monkeypatch.delitem(sys.modules, name)


# ---- sizes


SIZES = {"dim": 8, "channels": 4, "channel_multipliers": (1, 1), "norm_groups": 2, "patch_size": 2, "linear_path": True}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    quantizer = Quantizer("ema", dim=8, codebook_size=16, channel_dim=1)
    Tokenizer(ConvEncoder2d(**SIZES), quantizer, ConvDecoder2d(**SIZES)).save_pretrained(folder)
    return folder


class NoMemory(TorchDispatchMode):
    """Any tensor that is not on the meta device is one that was allocated."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            assert not isinstance(tensor, torch.Tensor) or tensor.is_meta, function
        return result


@pytest.mark.parametrize(
    ("part", "argument", "value", "message"),
    [
        ("encoder", "dim", 10**7, rf"360000000 numbers: expected at most {FREE_NUMBERS}"),
        ("quantizer", "codebook_size", 6 * 10**7, r"480000000 numbers: .* largest entry .* has 432"),
        ("quantizer", "codebook_size", 17, r"pending_counts' has shape \(16,\): .* asks for \(17,\)"),
        ("decoder", "channels", 8, r"entry 'decoder.layers.0.bias' has shape \(4,\): config.json asks for \(8,\)"),
        ("encoder", "num_res_blocks", 10**7, "more than {budget} tensors: expected what the {entries} entries"),
        ("encoder", "num_res_blocks", 3, r"'encoder.layers.10.branch.0.bias' is missing: .* shape \(4,\)"),
        ("encoder", "patch_size", 10**6, r"3000000000000, 3, 3\), 108000000000000 numbers"),
        ("encoder", "channels", 2**64, "argument 'encoder.channels' is 18446744073709551616: expected int"),
        ("encoder", "channels", True, "argument 'encoder.channels' is True: expected int"),
        ("encoder", "channel_multipliers", [1, "1"], r"'encoder.channel_multipliers' is \[1, '1'\]: expected .*int"),
        ("quantizer", "method", "os.system", "'quantizer.method' is 'os.system': expected .*'vq'"),
        ("quantizer", "search", {"class_path": "vqkit.Commitment", "init_args": {"weight": 1}}, "quantizer.search"),
        ("encoder", "dropout", {"factory": [3, 2]}, r"class_path=\[3, 2\]: expected 'package.module.Class'"),
        ("quantizer", "dim", {"float": "1e3"}, "argument 'quantizer.dim': float='1e3': expected 'inf'"),
        ("encoder", "dropout", {"float": "nan"}, "argument 'encoder.dropout' is nan: expected float"),
        ("encoder", "patch_size", 2**40, "patch_size=1099511627776: expected a positive number of at most 2147483647"),
    ],
)  # fmt: skip
def test_sizes_that_cannot_match_are_refused_before_memory_is_taken(
    saved: Path, tmp_path: Path, part: str, argument: str, value: Any, message: str
) -> None:
    config = json.loads((saved / "config.json").read_text())
    config["init_args"][part]["init_args"][argument] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(saved / "model.safetensors")
    entries = len(load_file(saved / "model.safetensors"))
    message = message.replace("{entries}", str(entries))
    message = message.replace("{budget}", str(FREE_TENSORS + TENSORS_PER_ENTRY * entries))
    with pytest.raises(ValueError, match=rf"\A{tmp_path}/\S+: [^\n]*{message}[^\n]*\Z"):
        Tokenizer.from_pretrained(tmp_path)


def test_tables_that_indices_are_computed_from_and_counters_are_those_of_the_configuration(tmp_path: Path) -> None:
    for quantizer, entry, value, message in (
        (FSQ([5, 4]), "place_values", [1, 4], r"place_values are \[1, 5\], and the state has \[1, 4\]"),
        (FSQ([5, 4]), "level_counts", [5, 5], r"levels are \[5, 4\], and the state has \[5, 5\]"),
        (LFQ(2), "place_values", [1, 3], "place_values: the state packs its bits in another order"),
        (Quantizer("vq", dim=2, codebook_size=4), "codebook._extra_state", [-1, 0, 0], r"counters are \[-1, 0, 0\]"),
    ):
        quantizer.save_pretrained(tmp_path)
        path = tmp_path / "model.safetensors"
        save_file(load_file(path) | {entry: torch.tensor(value)}, path)
        with pytest.raises(ValueError, match=rf"{path}: .*{message}"):
            BaseQuantizer.from_pretrained(tmp_path)


def test_a_module_is_compared_before_it_is_built(saved: Path) -> None:
    """Up to the comparison nothing stands in memory."""
    config = pretrained._read_config(saved / "config.json")
    state = load_file(saved / "model.safetensors")
    with NoMemory(), torch.device("meta"), Bounded(state):
        planned = from_config(config)
    check_entries(state, planned)


# ---- indices


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 3e38])
@pytest.mark.parametrize("name", CASES)
def test_no_index_out_of_range_leaves_a_quantizer(name: str, value: float) -> None:
    """Whatever training made of the weights: a NaN in a projection was -2^63 for FSQ."""
    quantizer = CASES[name].build()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for tensor in quantizer.state_dict().values():
            if tensor.is_floating_point():
                tensor.fill_(value)
        x = CASES[name].example()
        latents, valid, _ = quantizer.eval().open(x)  # not `forward`, since losses may not be defined then
        for indices in (quantizer.encode(x), quantizer.quantize(latents, valid).indices):
            sizes = torch.tensor(quantizer.codebook_sizes if quantizer.level_axis else quantizer.codebook_size)
            assert ((indices >= -1) & (indices < sizes)).all()

"""The rules of the house that a machine can check: which way imports point, what importing costs, and what never
appears."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "vqkit"

# From bottom to top: a module may import from lower rows only, type hints excepted. Where a package is named, its files
# may import each other; where its files are, the same holds for each of them.
ROWS = [
    {"version", "precision", "runtime", "unsaved_buffers"},
    {"functional", "indices", "distributed", "sharding"},
    {"kernels", "saving"},
    {"clustering"},
    {"backbones", "tokens", "layouts"},
    {"bitstream", "media", "parts.part"},
    {"parts.selection"},
    {"parts.codebooks", "parts.estimators", "parts.losses", "parts.maintenance"},
    {"parts", "parts.compatibility", "parts.int8"},
    {"methods"},
    {"quantizers"},
    {"tokenizers"},
    {"conversion", "inspect", "metrics"},
    {"deployment", "surgery", "command_line"},
    {"__init__", "__main__"},
]
TRAINERS = [{"__init__"}, {"core"}, {"data"}, {"image", "audio", "vectors"}, {"callbacks"}, {"run"}, {"__main__"}]
"""The same for the trainers, which may import all of vqkit."""

LEVELS = {
    package: {name: number for number, row in enumerate(rows) for name in row}
    for package, rows in (("vqkit", ROWS), ("trainers", TRAINERS))
}


def room_of(module: str) -> tuple[str, str]:
    """A module's package, and its name in the rows: that of its file where the files of its folder are named."""
    package, *parts = module.split(".")
    both = ".".join(parts[:2])
    return package, both if both in LEVELS[package] else parts[0] if parts else "__init__"


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> set[str]:
    """vqkit modules that a file imports when it runs; blocks under `if TYPE_CHECKING` do not run."""
    tree = ast.parse(path.read_text())
    typing_only = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ("vqkit", "trainers"):
            names = [node.module] if node.module != "vqkit" else [f"vqkit.{alias.name}" for alias in node.names]
            found.update(names)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names if alias.name.split(".")[0] in ("vqkit", "trainers"))
    return found


def sources() -> list[Path]:
    return sorted(path for folder in ("vqkit", "trainers") for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    package, own = room_of(module_of(path))
    levels = LEVELS[package]
    assert own in levels, f"{own} has no row: add it to the rows above and to docs/architecture.md"
    for name in imports_of(path):
        theirs, other = room_of(name)
        if theirs != package:
            assert theirs == "vqkit", f"the library imports {name}"
            continue
        assert other == own or levels[other] < levels[own], f"{package}.{own} imports {other}, which is not below it"


def test_importing_vqkit_loads_nothing_heavy() -> None:
    code = "import sys, vqkit; print(sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    for name in (
        "lightning",
        "wandb",
        "torchvision",
        "torchmetrics",
        "matplotlib",
        "huggingface_hub",
        "PIL",
        "soundfile",
        "soxr",
    ):
        assert f"'{name}'" not in loaded


def test_importing_vqkit_does_not_load_the_compiler() -> None:
    """It takes ten times as long as all of vqkit; torch.export and custom operators pull it in easily."""
    code = "import sys, torch; known = {*sys.modules}; import vqkit; print('torch._dynamo' in {*sys.modules} - known)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert loaded.strip() == "False"


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_data_attribute_and_no_bare_except(path: Path) -> None:
    """`.data` hides a write from autograd: gradients come out silently wrong."""
    tree = ast.parse(path.read_text())
    written = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr == "data"
        and not (isinstance(node.value, ast.Name) and node.value.id == "trainers")
    ]
    bare = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and node.type is None]
    assert not written and not bare


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_abstractness_has_one_style(path: Path) -> None:
    """`abc.abstractmethod` refuses the class where it is built; an error inside of the method comes too late."""
    assert "NotImplementedError" not in path.read_text()


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_unsaved_buffers_can_be_made_anew(path: Path) -> None:
    """`to_empty` leaves in others whatever the memory held."""
    assert path.name == "unsaved_buffers.py" or "persistent=False" not in path.read_text()


def test_the_library_does_not_print_log_or_read_the_environment() -> None:
    switch = PACKAGE / "kernels" / "engines.py"  # VQKIT_FUSED, the only one
    for path in PACKAGE.rglob("*.py"):  # what `python -m` runs writes to sys.stdout
        calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
        allowed = {"os.environ.get"} if path == switch else set()
        assert not calls & {"print", "os.getenv", "os.environ.get", "logging.getLogger"} - allowed, path


def test_everything_public_is_documented() -> None:
    import vqkit

    public = [
        value for name, value in vars(vqkit).items() if isinstance(value, type) and value.__module__.startswith("vqkit")
    ]
    assert len(public) > 15
    assert [value.__name__ for value in public if not (value.__doc__ or "").strip()] == []

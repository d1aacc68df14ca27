"""Published weights by their names: fetched from a stand-in of the hub, converted into its cache, and refused."""

import io
import json
import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conversion.hub import MAIN, Hub
from tests.conversion.published import DiffusersVQ, LlamaGen, Published, Taming
from vqkit import Tokenizer, convert
from vqkit.command_line.main import main
from vqkit.command_line.weights import family_named
from vqkit.conversion import Family, VARAutoencoder, cache
from vqkit.conversion.converting import FAMILIES
from vqkit.conversion.published import PUBLISHED, PublishedWeights, find
from vqkit.version import __version__

ROOT = Path(__file__).parents[2]
NAME = "FoundationVision/LlamaGen/vq_ds16_c2i.pt"
REPOSITORY = "FoundationVision/LlamaGen"
CARD = b"---\nlicense: mit\n---\n"


def packed(cls: type[Published]) -> bytes:
    model = cls()
    model(torch.zeros(1, 3, 16, 16))
    content = io.BytesIO()
    torch.save(model.state, content)
    return content.getvalue()


WEIGHTS = {cls: packed(cls) for cls in (LlamaGen, Taming, DiffusersVQ)}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path / "cache", {REPOSITORY: {"README.md": CARD, "vq_ds16_c2i.pt": WEIGHTS[LlamaGen]}})
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)  # type: ignore[arg-type]
    monkeypatch.chdir(tmp_path)
    return hub


def pictures() -> torch.Tensor:
    return torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_a_name_opens_what_its_file_is_converted_to(hub, tmp_path) -> None:
    (tmp_path / "vq.pt").write_bytes(WEIGHTS[LlamaGen])
    expected = convert(tmp_path / "vq.pt", tmp_path / "by_path")
    told = {"license": "mit", "published": NAME, "revision": MAIN}
    for tokenizer in (Tokenizer.from_pretrained(NAME), convert(NAME, tmp_path / "by_name")):
        assert torch.equal(tokenizer.encode(pictures()), expected.encode(pictures()))
        assert tokenizer.provenance == {**expected.provenance, "file": "vq_ds16_c2i.pt", **told}
    assert hub.calls[:2] == [
        (REPOSITORY, None, ("README.md",)),
        (REPOSITORY, MAIN, ("vq_ds16_c2i.pt", "config.json")),
    ]


def test_weights_are_converted_once_for_each_revision(hub, monkeypatch) -> None:
    first = cache.converted(NAME)
    assert first is not None and first.is_relative_to(hub.home(REPOSITORY))
    for part in (MAIN, "vq_ds16_c2i.pt", "LlamaGenVQ", __version__):
        assert part in first.name
    with monkeypatch.context() as context:
        context.setattr(cache, "save_fetched", None)
        assert cache.converted(NAME) == first
    hub.commits["v2"] = "f" * 40
    other = cache.converted(NAME, "v2")
    assert other is not None and other != first and other.parent == first.parent
    hub.commits["main"] = "f" * 40  # the branch moves on
    assert cache.converted(NAME) == other


def test_a_repository_with_one_file_of_the_table_is_a_name(hub) -> None:
    (weights,) = [each for each in PUBLISHED if each.repository == "FoundationVision/var"]
    hub.repositories["FoundationVision/var"] = {"README.md": CARD}
    with pytest.raises(FileNotFoundError, match=f"FoundationVision/var has no {weights.path} at {MAIN}"):
        Tokenizer.from_pretrained("FoundationVision/var")
    with pytest.raises(ValueError, match=r"several files of weights: give one of .*vq_ds16_c2i\.pt, .*vq_ds8_c2i\.pt"):
        Tokenizer.from_pretrained(REPOSITORY)


def test_what_is_there_is_a_path(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    file = tmp_path / NAME
    file.parent.mkdir(parents=True)
    file.write_bytes(WEIGHTS[LlamaGen])
    assert "published" not in (convert(NAME, "converted").provenance or {})
    with pytest.raises(ValueError, match=f"{NAME} is a file in {tmp_path}: convert it"):
        Tokenizer.from_pretrained(NAME)
    file.unlink()
    with pytest.raises(ImportError, match=rf'{NAME} is no file in {tmp_path}, .* pip install "vqkit\[hub\]"'):
        convert(NAME, "other")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("FoundationVision/LlamaGen/vq_ds16.pt", f"did you mean '{NAME}'.* those are {NAME}, .*hf download"),
        ("somebody/else", "is no name of published weights; those are .*give its path"),
        ("last.ckpt", "there is no such file or folder; expected one, or a name of docs/weights.md"),
        ("/none/last.ckpt", "there is no such file or folder; expected one"),
    ],
)
def test_names_that_are_not_confirmed_are_refused(hub, name, message) -> None:
    with pytest.raises(FileNotFoundError, match=message):
        convert(name, "converted")
    assert not hub.calls and not Path("converted").exists()


def test_what_the_hub_has_no_more_is_said_in_a_line(hub) -> None:
    hub.repositories.clear()
    with pytest.raises(FileNotFoundError, match=r"the hub gave no such model: OSError: 404: no such repository$"):
        convert(NAME, "converted")


# ---------------------------------------------------------------------- licenses


def test_a_license_is_looked_at_before_weights_are_fetched(hub) -> None:
    hub.repositories[REPOSITORY]["README.md"] = b"---\nlicense: cc-by-nc-4.0\n---\n"
    words = rf"{NAME}: its license 'cc-by-nc-4.0' forbids commercial use; .*accept_license='cc-by-nc-4.0' to vqkit\.con"
    for attempt in (lambda: convert(NAME, "converted"), lambda: Tokenizer.from_pretrained(NAME)):
        with pytest.raises(ValueError, match=words):
            attempt()
    assert {patterns for _, _, patterns in hub.calls} == {("README.md",)}
    told = convert(NAME, "converted", accept_license="cc-by-nc-4.0").provenance
    assert told is not None and told["license"] == "cc-by-nc-4.0"
    with pytest.raises(ValueError, match=words):  # nor from what is in the cache by then
        Tokenizer.from_pretrained(NAME)


@pytest.mark.parametrize(("card", "expected"), [(None, "research only"), (CARD, "research only")])
def test_the_stricter_license_counts(card, expected, hub, monkeypatch) -> None:
    (weights,) = [each for each in PUBLISHED if each.name == NAME]
    strict = PublishedWeights(weights.repository, weights.path, weights.family, "research only", "a page")
    hub.repositories[REPOSITORY].pop("README.md")
    if card:
        hub.repositories[REPOSITORY]["README.md"] = card
    with pytest.raises(ValueError, match=f"its license '{expected}' forbids commercial use"):
        strict.fetch()
    assert strict.fetch(accept_license=expected).license == expected


@pytest.mark.slow
def test_without_a_card_the_license_is_that_of_the_table(hub) -> None:
    del hub.repositories[REPOSITORY]["README.md"]
    told = Tokenizer.from_pretrained(NAME).provenance
    assert told is not None and told["license"] == "mit"


# ---------------------------------------------------------------------- strangers


@pytest.mark.parametrize("name", ["vq_ds16_c2i.pt", "config.json"])
def test_a_link_out_of_the_cache_is_refused(name, hub, tmp_path) -> None:
    (tmp_path / "elsewhere").write_bytes(WEIGHTS[LlamaGen])
    folder = hub.home(REPOSITORY) / "snapshots" / MAIN
    folder.mkdir(parents=True)
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=rf"{name} leads to {tmp_path}/elsewhere, out of the cache: delete "):
        Tokenizer.from_pretrained(NAME)


class Attack:
    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


def test_a_repository_whose_file_is_replaced_is_refused(hub) -> None:
    attack = io.BytesIO()
    torch.save({"state_dict": Attack()}, attack)
    for content, message in (
        (WEIGHTS[Taming], "does not hold the weights of VQ of LlamaGen"),
        (attack.getvalue(), r"only code could make: (posix|nt)\.mkdir"),
        (WEIGHTS[LlamaGen][:-100], "ends too early"),
    ):
        hub.repositories[REPOSITORY]["vq_ds16_c2i.pt"] = content
        hub.commits["main"] = f"{len(content):040x}"
        with pytest.raises(ValueError, match=rf"vq_ds16_c2i\.pt: .*{message}"):
            Tokenizer.from_pretrained(NAME)
    assert not Path("ran").exists() and not list((hub.home(REPOSITORY) / cache.FOLDER).iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "message"),
    [
        (b'{"_class_name": "AutoencoderKL"}', "config.json has _class_name='AutoencoderKL': expected 'VQModel'"),
        (b'{"_class_name": ["VQModel"],}', "config.json: not valid JSON"),
    ],
)
def test_the_config_of_another_model_is_refused_where_it_counts(config, message, hub) -> None:
    name, file = "CompVis/ldm-celebahq-256", "vqvae/diffusion_pytorch_model.bin"
    hub.repositories[name] = {"README.md": CARD, file: WEIGHTS[DiffusersVQ], "vqvae/config.json": config}
    with pytest.raises(ValueError, match=message):
        Tokenizer.from_pretrained(name)
    hub.repositories[REPOSITORY]["config.json"] = config  # which a family without settings does not read
    assert Tokenizer.from_pretrained(NAME).provenance is not None


# ---------------------------------------------------------------------- whole or not at all


def test_two_at_once_get_the_same_folder(hub, monkeypatch) -> None:
    """Both have looked before either has moved its folder into place."""
    both, save = threading.Barrier(2, timeout=30), cache.save_fetched

    def late(*arguments: Any) -> None:
        save(*arguments)
        both.wait()

    monkeypatch.setattr(cache, "save_fetched", late)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: cache.converted(NAME), range(2))
    assert first == second and first is not None
    assert [path.name for path in first.parent.iterdir()] == [first.name]
    assert isinstance(Tokenizer.from_pretrained(first), Tokenizer)


@pytest.mark.slow
def test_a_conversion_that_ends_early_leaves_nothing(hub, monkeypatch) -> None:
    with monkeypatch.context() as context:
        context.setattr(Tokenizer, "save_pretrained", lambda self, folder: os.mkdir(folder) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            cache.converted(NAME)
    assert not list((hub.home(REPOSITORY) / cache.FOLDER).iterdir())
    assert isinstance(Tokenizer.from_pretrained(NAME), Tokenizer)


OFFLINE = f"""
from vqkit import Tokenizer
print(Tokenizer.from_pretrained({NAME!r}).provenance["revision"])
"""


@pytest.mark.slow
def test_the_real_client_gives_what_is_in_its_cache(tmp_path) -> None:
    hub = Hub(tmp_path, {REPOSITORY: {"README.md": CARD, "vq_ds16_c2i.pt": WEIGHTS[LlamaGen]}})
    hub.snapshot_download(REPOSITORY, revision=None, allow_patterns=["*"])
    (hub.home(REPOSITORY) / "refs").mkdir()
    (hub.home(REPOSITORY) / "refs/main").write_text(MAIN)
    pytest.importorskip("huggingface_hub")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", OFFLINE], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, MAIN), done.stderr


# ---------------------------------------------------------------------- the table, and commands


def test_each_name_is_there_once_and_in_the_guide() -> None:
    guide = (ROOT / "docs/weights.md").read_text()
    names = [weights.name for weights in PUBLISHED]
    assert len(names) == len({*names})
    for weights in PUBLISHED:
        assert isinstance(weights.family, Family) and weights.license and weights.source
        assert re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", weights.repository)
        words = (f"`{weights.repository}`", f"`{weights.path}`", f"`{type(weights.family).__name__}`")
        assert "| " + " | ".join((*words, weights.license, weights.source)) + " |" in guide


def test_names_that_the_guide_says_to_type_are_known() -> None:
    rows = (ROOT / "docs/weights.md").read_text().partition("| by a name |")[2].partition("\n\n")[0].splitlines()[2:]
    names = [name.split()[0] for row in rows for name in re.findall("`(.*?)`", row.split("|")[-2])]
    assert len(names) >= 12 and all(find(name) for name in names)


def test_families_are_named_as_in_python() -> None:
    assert [type(family_named(family.__name__)) for family in FAMILIES] == list(FAMILIES)
    for text in ("VARAutoencoder([1, 2])", "VARAutoencoder(scales=[1, 2])", "VARAutoencoder( (1, 2) )"):
        family = family_named(text)
        assert isinstance(family, VARAutoencoder) and family.scales == [1, 2]
    for text, message in (
        ("VARAutoencodr", r"names no family \(did you mean VARAutoencoder\?\): expected one of "),
        ("VARAutoencoder(size=1)", "unexpected keyword argument 'size'; VARAutoencoder takes scales"),
        ("LlamaGenVQ(__import__('os'))", "cannot be made: malformed node .*; LlamaGenVQ takes no arguments"),
        ("LlamaGenVQ(", "cannot be made: "),
        ("LlamaGenVQ().read", "cannot be made: "),
        ("TATiTok([[0.0]])", "text is a list: expected a tensor of floating point"),
    ):
        with pytest.raises(ValueError, match=message):
            family_named(text)


def test_info_tells_family_license_and_sizes(tmp_path, capsys) -> None:
    file = tmp_path / "vq_ds16_c2i.pt"
    file.write_bytes(WEIGHTS[LlamaGen])
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    count = sum(parameter.numel() for parameter in convert(file, tmp_path / "a", license="mit").parameters())
    capsys.readouterr()
    for words, license in ((["info", str(file)], r"cc-by-nc-4\.0, which has to be accepted"), (["info", "a"], "mit")):
        words[-1] = str(tmp_path / words[-1])
        assert main(words) == 0
        told = capsys.readouterr().out
        assert re.search(rf"family +VQ of LlamaGen.*license +{license}.*levels +1 of 48 codes", told, re.DOTALL)
        assert f"parameters  {count / 1e6:.2f} M: encoder " in told and "left_out    quantize.codebook_used" in told
    assert main(["info", "--family", "TamingVQGAN", str(file)]) == 2
    assert "does not hold the weights of VQGAN of taming-transformers" in capsys.readouterr().err


def test_the_command_converts_a_name(hub, capsys) -> None:
    assert main(["convert", "--family", "LlamaGenVQ", NAME, "converted"]) == 0
    assert capsys.readouterr().out.startswith("family VQ of LlamaGen, file vq_ds16_c2i.pt, license mit, published ")
    saved = json.loads(Path("converted/config.json").read_text())
    assert saved["vqkit_version"] == __version__ and saved["provenance"]["revision"] == MAIN
    with pytest.raises(SystemExit):
        main(["convert", "--family", "LlamaGenV", NAME, "other"])
    assert "did you mean LlamaGenVQ?" in capsys.readouterr().err

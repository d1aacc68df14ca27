"""The documents: their Python and commands run, their tables are the records', their links and papers can be followed.

Commands run on a small folder of drawn pictures or written recordings, and are cut short.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import draw_parts
import publish
import pytest

from tests.trainers.pictures import draw_pictures
from tests.trainers.recordings import write_recordings
from trainers.run.cli import main
from vqkit.command_line.main import main as command_line
from vqkit.command_line.main import parser

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "benchmarks").rglob("*.md")),
    ROOT / "assets/SOURCES.md",
]


def python(document: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


SHELL = [
    line.partition("  #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]
SHORT = "--trainer.max_steps 2 --model.initialization_samples 64 --trainer.accelerator cpu "
SMALL = {
    "image": SHORT + "--data.resolution 16 --data.batch_size 4 "
    "--model.tokenizer.encoder.channels 32 --model.tokenizer.decoder.channels 32",
    "audio": SHORT + "--data.segment_seconds 0.1 --data.batch_size 4 "
    "--model.tokenizer.encoder.channels 8 --model.tokenizer.decoder.channels 8",
}
"""What makes a fit of the README quick, for pictures and for sound."""


def test_there_is_something_to_run() -> None:
    assert python("README.md") and any(command.startswith("make") for command in SHELL)
    trained = [shlex.split(command)[3] for command in SHELL if command.startswith("python -m trainers")]
    coded = [shlex.split(command)[3] for command in SHELL if command.startswith("python -m vqkit")]
    assert set(trained) == {"fit", "test", "predict", "export"} and coded == ["encode", "decode"]


RUN = [
    "README.md",
    *(f"docs/{name}.md" for name in ("quantizers", "layouts", "bitstream", "surgery", "inspection", "other_uses")),
]


@pytest.mark.parametrize("document", RUN)
def test_python(document: str) -> None:
    names: dict[str, object] = {}
    for block in python(document):
        exec(compile(block, document, "exec"), names)


@pytest.mark.parametrize("command", [command for command in SHELL if command.startswith("make")])
def test_make_knows_its_commands(command: str) -> None:
    planned = subprocess.run(["make", "--dry-run", *command.split()[1:]], cwd=ROOT, capture_output=True, text=True)
    assert planned.returncode == 0, planned.stderr


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*initialize got")
def test_commands_in_their_order(tmp_path, monkeypatch, capfd) -> None:
    pictures, sounds = tmp_path / "pictures", tmp_path / "sounds"
    draw_pictures(pictures, 12)
    write_recordings(sounds, 12, sample_rate=16000)
    shutil.copyfile(sorted((ROOT / "assets/audio/eval").glob("*.flac"))[0], tmp_path / "speech.flac")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.chdir(ROOT)
    for command in SHELL:
        kind = "audio" if "configs/audio" in command else "image"
        folder = sounds if kind == "audio" else pictures
        words = command.replace("DIR", str(folder)).replace("runs/", f"{tmp_path}/").split()
        if command.startswith("python -m trainers export"):
            main([*words[3:-1], str(tmp_path / words[-1])])
        elif command.startswith("python -m trainers"):
            extra = SMALL[kind].split() if words[3] == "fit" else []
            if "--ckpt_path" in words:
                extra += ["--trainer.max_steps", "3"]
            monkeypatch.setattr("sys.argv", ["trainers", *words[3:], "--runs", str(tmp_path), *extra])
            main()
        elif command.startswith("python -m vqkit"):
            files = [str(tmp_path / word) if word.endswith((".flac", ".wav", ".vqk")) else word for word in words[3:]]
            assert command_line(files) == 0
    assert (tmp_path / "mine/metrics.json").is_file() and list((tmp_path / "mine/tokens").glob("*.safetensors"))
    assert (tmp_path / "exported/model.safetensors").is_file()
    assert "resuming from" in capfd.readouterr().out
    assert (tmp_path / "again.wav").stat().st_size > 32_000


@pytest.mark.parametrize("document", ["README.md", "docs/audio.md", "docs/command_line.md", "docs/inspection.md"])
def test_commands_are_those_of_the_library(document: str) -> None:
    found = re.findall(r"^python -m vqkit (.*)$", (ROOT / document).read_text(), re.MULTILINE)
    assert found
    for words in found:
        parser().parse_args(shlex.split(words))


def test_tables_are_those_of_the_records() -> None:
    """A figure that was typed by hand, or that its record has left behind, is found here."""
    for document in publish.DOCUMENTS:
        text = document.read_text()
        assert "<!-- table" in text and publish.rendered(text) == text, document.name


def test_records_do_not_say_where_a_run_lay() -> None:
    records = publish.run_tables.RESULTS.glob("*.json")
    named = {file.name: re.findall(r'"checkpoint": "([^"]+)"', file.read_text()) for file in records}
    assert [paths for paths in named.values() if paths]
    assert {name: paths for name, paths in named.items() if any(not path.startswith("runs/") for path in paths)} == {}


def test_runs_of_other_lengths_are_not_set_side_by_side(tmp_path: Path) -> None:
    for name in publish.run_tables.OBJECTIVES:
        record = json.loads((publish.run_tables.RESULTS / f"{name}.json").read_text())
        record["protocol"]["step"] += name == "photos_l2"
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="train them equally long"):
        publish.run_tables.objectives(publish.run_tables.OBJECTIVES, folder=tmp_path)


def test_a_record_that_is_half_measured_names_its_table(tmp_path: Path, monkeypatch) -> None:
    record = json.loads(publish.twins.RECORD.read_text())
    for row in record["cells"].values():
        del row["ssim"]
    monkeypatch.setattr(publish.twins, "RECORD", tmp_path / "twins.json")
    publish.twins.RECORD.write_text(json.dumps(record))
    text = "<!-- table twins -->\n<!-- end -->"
    with pytest.raises(ValueError, match="table twins: its record has no 'ssim': measure to the end"):
        publish.rendered(text)


def test_the_drawing_is_that_of_the_code() -> None:
    assert draw_parts.PICTURE.read_text() == draw_parts.picture(), "run scripts/publish.py"


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 200


def prose(document: Path) -> str:
    """A document without its code, in which nothing is a link or a heading."""
    return re.sub(r"^```.*?^```|`[^`\n]+`", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(document: Path) -> set[str]:
    """What a link after # can name: the headings, as GitHub and the site write them."""
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", document.read_text()):
        if not re.match(r"https?://", target):
            place = document.parent / target if target else document
            assert place.exists(), target
            assert not anchor or anchor in anchors(place), f"{target}#{anchor}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_papers_are_links(document: Path) -> None:
    """`[arXiv:ID](https://arxiv.org/abs/ID)`: each id leads to the paper that it names."""
    text = prose(document)
    for shown, target in re.findall(r"\[arXiv:(\S+)\]\(https://arxiv\.org/abs/(\S+?)\)", text):
        assert shown == target
    bare = re.sub(r"\[[^\]]*\]\([^)]*\)", "", text)
    assert not re.findall(r"arxiv.{0,20}", bare, re.IGNORECASE)


@pytest.mark.parametrize("package", ["vqkit", "trainers"])
def test_papers_of_docstrings_have_the_form_that_the_site_links(package: str) -> None:
    """`arXiv:ID` (or with a space), or the address, on one line."""
    for path in sorted((ROOT / package).rglob("*.py")):
        for following in re.findall(r"arxiv(?!\.org/abs/)(.{0,12})", path.read_text(), re.IGNORECASE | re.DOTALL):
            assert re.match(r"[: ]\d{4}\.\d{4,5}(?!\d)", following), f"{path.relative_to(ROOT)}: arXiv{following}"


@pytest.mark.slow
def test_site_builds(tmp_path: Path) -> None:
    """`make docs`; a warning, such as one of a reference that cannot be resolved, is an error."""
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    for page in ("index", "quantizers", "regressions", "reference/vqkit.quantizers"):
        html = (tmp_path / "site" / f"{page}.html").read_text()
        assert not re.search(r"<(script|link|img)[^>]+(src|href)=\"?https?:", html), "the site fetches from outside"
    assert "https://arxiv.org/abs/2107.03312" in html


@pytest.mark.parametrize("config", sorted((ROOT / "docs/results").glob("*.yaml")), ids=lambda path: path.stem)
def test_published_configs_name_no_place_of_a_machine(config: Path) -> None:
    assert not re.search(r"(^|\s)/\w", config.read_text())

"""Figures of several runs side by side, and protocols that forbid it."""

from pathlib import Path
from typing import Any

import pytest

from trainers.run.cli import main
from trainers.run.table import table
from vqkit.saving.files import write_json


def record(**changed: Any) -> dict[str, Any]:
    """Of an image run."""
    preprocessing = {"filter": "bicubic", "resolution": 256}
    protocol = {"images": 50, "preprocessing": preprocessing, "versions": {"torch": "2.11.0"}, "step": 7, "run": "a"}
    return {"psnr": 20.5, "usage_per_level": [0.5], "images": 50, "protocol": protocol | changed}


def written(folder: Path, **records: dict[str, Any]) -> list[str]:
    for name, content in records.items():
        write_json(folder / name / "metrics.json", content)
    return [str(folder / name) for name in records]


def test_runs_that_were_measured_alike_are_set_side_by_side(tmp_path, capsys) -> None:
    other = record(step=9, run="b", checkpoint="last.ckpt") | {"psnr": 21.25, "vgg_lpips": 0.125}
    runs = written(tmp_path, one=record(), other=other)
    lines = [
        f"| | {runs[0]} | {runs[1]}/metrics.json |",
        "|---|---:|---:|",
        "| psnr | 20.5 | 21.25 |",
        "| vgg_lpips | - | 0.125 |",
    ]
    main(["table", runs[0], f"{runs[1]}/metrics.json", "--figures", "psnr", "vgg_lpips"])
    assert capsys.readouterr().out.splitlines() == lines
    assert [line.split(" | ")[0] for line in table(runs)[2:]] == ["| psnr", "| images", "| vgg_lpips"]
    with pytest.raises(ValueError, match="--figures ssim: no run has it; there are psnr, images, vgg_lpips"):
        table([*runs, "--figures", "psnr", "ssim"])


@pytest.mark.parametrize(
    ("changed", "key", "values"),
    [
        (
            {"preprocessing": {"filter": "bilinear", "resolution": 256}},
            "preprocessing.filter",
            ("'bicubic'", "'bilinear'"),
        ),
        ({"images": 49}, "images", ("50", "49")),
        ({"versions": {"torch": "2.10.0"}}, "versions.torch", ("'2.11.0'", "'2.10.0'")),
        ({"measures": {"vgg": {"sha256": "5e"}}}, "measures.vgg.sha256", ("missing", "'5e'")),
    ],
)
def test_two_protocols_are_refused_unless_it_is_asked_for(changed, key, values, tmp_path, capsys) -> None:
    runs = written(tmp_path, one=record(), same=record(), other=record(**changed))
    words = f"{key} is {values[0]} in {runs[0]} and {values[1]} in {runs[2]}"
    with pytest.raises(SystemExit) as exit:
        main(["table", *runs])
    assert exit.value.code == 2
    assert f"error: protocols differ, so figures cannot be compared: {words}. Measure" in capsys.readouterr().err
    for allowed in (key, key.partition(".")[0]):
        assert table([*runs, "--despite", allowed])[-1] == f"Not measured alike: {words}."
    with pytest.raises(ValueError, match="protocols differ"):
        table([*runs, "--despite", key[:-1]])  # no beginning of a word


def test_what_has_no_record_is_refused(tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty/metrics.json does not exist: expected a folder with it"):
        table([str(tmp_path / "empty")])
    with pytest.raises(ValueError, match="has no protocol"):
        table(written(tmp_path, old={"psnr": 20.0}))


def test_a_figure_and_its_protocol_may_be_of_one_run_alone(tmp_path) -> None:
    """Bits per pixel beside a divergence; a measure without figures in the record is still missing."""
    kinds = {"codes": ("bpp", 0.5), "vae": ("kl", 9.0)}
    runs = written(tmp_path, **{name: record(**{key: "how"}) | {key: value} for name, (key, value) in kinds.items()})
    assert table([*runs, "--figures", "bpp", "kl"])[2:] == ["| bpp | 0.5 | - |", "| kl | - | 9 |"]
    with pytest.raises(ValueError, match=r"protocols differ.*bpp is 'how' in .* and missing in"):
        table(written(tmp_path, codes=record(bpp="how") | {"bpp": 0.5}, old=record() | {"bpp": 0.5}))

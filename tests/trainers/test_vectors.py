"""Training of tokenizers of vectors by the command line, their figures, and tables of semantic IDs."""

import json
from pathlib import Path

import numpy
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from tests.trainers.conftest import ROOT, run_command
from trainers.run.cli import main
from trainers.vectors.ids import IDTable
from trainers.vectors.metrics import VectorMetrics, item_figures
from trainers.vectors.neighbours import recall_by_prefix, recall_by_vectors, true_neighbours
from trainers.vectors.objectives import CosineDistance, SquaredError
from trainers.vectors.task import VectorTokenizerTask
from vqkit import Quantizer, ResidualQuantizer
from vqkit.backbones.mlp import Passthrough
from vqkit.clustering import balanced_kmeans
from vqkit.tokenizers.vectors import CommonScale, Standardization, VectorTokenizer

SIZES = {"encoder.in_channels": 6, "decoder.out_channels": 6, "scaling.dim": 6}
CODES = "model.init_args.tokenizer.init_args.quantizer.init_args.stage.init_args.codebook_size: 8\n"
TINY = {f"model.tokenizer.{name}": value for name, value in SIZES.items()}
TINY |= {"model.pretraining_steps": 1, "model.warmup_steps": 1, "model.initialization_samples": 32}
TINY |= {"trainer.accelerator": "cpu", "trainer.max_steps": 3, "trainer.log_every_n_steps": 1, "data.batch_size": 32}


def small(name: str, folder: Path) -> str:
    """A configuration with few codes."""
    path = folder / f"{name}.yaml"
    path.write_text(f"base: {ROOT}/configs/vectors/{name}.yaml\n{CODES}")
    return str(path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*initialize got")
@pytest.mark.usefixtures("quiet")
def test_a_run_from_vectors_to_ids(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    items = torch.randn(120, 6) + 40
    save_file({"vectors": items, "item": torch.arange(120) + 1000}, tmp_path / "items.safetensors")
    data = {"data.root": tmp_path / "items.safetensors", "data.column": "vectors", "data.id_column": "item"}
    options = {"name": "run", "runs": tmp_path, **data, **TINY}
    run_command("fit", config=small("semantic_ids", tmp_path), **options)
    tokenizer = VectorTokenizer.from_pretrained(tmp_path / "run/tokenizer")
    assert bool(tokenizer.scaling.is_fitted) and (tokenizer.scaling.mean - 40).abs().max() < 1
    config = tmp_path / "run/config.yaml"
    run_command("test", config=config)
    record = json.loads((tmp_path / "run/metrics.json").read_text())
    assert record["bits_per_vector"] == 9 and record["explained"] < 1 and "recall" in record["protocol"]
    assert len(record["perplexity_per_level"]) == 3
    run_command("predict", config=config)
    assert "120 samples written" in capsys.readouterr().out
    assert (tmp_path / "run/reconstructions.png").is_file()

    pytest.importorskip("pyarrow")
    columns = ["--column", "vectors", "--id-column", "item"]
    words = [str(tmp_path / "run"), str(tmp_path / "items.safetensors"), *columns]
    main(["ids", *words, "--to", str(tmp_path / "ids.parquet")])
    assert "suffixes up to" in capsys.readouterr().out
    table = IDTable.read(tmp_path / "ids.parquet")
    assert table.items == list(range(1000, 1120)) and table.semantic_ids.equal(tokenizer.encode(items))
    whole = torch.cat([table.semantic_ids, table.suffixes[:, None]], dim=1)
    assert len(whole.unique(dim=0)) == 120
    new = {"vectors": torch.cat([items[:2], items[:1]]), "item": torch.tensor([1000, 1001, 2000])}
    save_file(new, tmp_path / "new.safetensors")
    words[1] = str(tmp_path / "new.safetensors")
    main(["ids", *words, "--to", str(tmp_path / "new.parquet"), "--known", str(tmp_path / "ids.parquet")])
    later = IDTable.read(tmp_path / "new.parquet")
    assert later.items == [2000] and later.semantic_ids.equal(table.semantic_ids[:1])
    assert later.suffixes.item() == (table.semantic_ids == table.semantic_ids[0]).all(1).sum()


def test_items_that_come_later_twice(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("pyarrow")
    items = torch.randn(30, 3)
    paths = [str(tmp_path / f"{day}.parquet") for day in range(4)]

    def ids(vectors: Tensor, day: int, *known: str, unique: str = "suffix") -> str:
        numpy.save(tmp_path / "items.npy", vectors.numpy())
        words = [str(tmp_path / "km"), str(tmp_path / "items.npy"), "--to", paths[day], "--unique", unique]
        try:
            main(["ids", *words, *(["--known", *known] if known else [])])
        except SystemExit:
            return capsys.readouterr().err
        return ""

    numpy.save(tmp_path / "items.npy", items.numpy())
    main(["kmeans", str(tmp_path / "items.npy"), "--codes", "2", "4", "--to", str(tmp_path / "km")])
    grown = torch.cat([items, items[:9], items[:9]])
    assert not ids(items, 0) and not ids(grown[:39], 1, paths[0]) and not ids(grown, 2, *paths[:2])
    tables = [IDTable.read(Path(path)) for path in paths[:3]]
    assert [len(table.items) for table in tables] == [30, 9, 9]
    rows = torch.cat([torch.cat([table.semantic_ids, table.suffixes[:, None]], dim=1) for table in tables])
    assert len(rows.unique(dim=0)) == 48
    assert "name items by --id-column" in ids(-items[:20], 3, paths[0])
    assert "the known IDs have suffixes" in ids(grown, 3, paths[0], unique="last_level")
    assert not ids(items, 3, unique="no")
    assert "2 levels with suffixes of codebook" in ids(grown, 1, paths[0], paths[3])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*initialize got")
@pytest.mark.usefixtures("quiet")
def test_series_of_episodes(tmp_path: Path) -> None:
    for number in range(8):
        steps = torch.arange(40.0)[:, None] / torch.arange(2.0, 8.0) + number
        numpy.save(tmp_path / f"{number}.npy", steps.sin().numpy())
    sizes = {"model.tokenizer.encoder.channels": 8, "model.tokenizer.decoder.channels": 8, "data.window": 16}
    options = {"data.root": tmp_path, "name": "run", "runs": tmp_path / "runs", **TINY, **sizes, "data.batch_size": 4}
    run_command("fit", config=small("series", tmp_path), **options)
    tokenizer = VectorTokenizer.from_pretrained(tmp_path / "runs/run/tokenizer")
    assert tokenizer.encode(torch.randn(2, 6, 16)).shape == (2, 4, 4) and tokenizer.encoder.causal


@pytest.mark.slow
@pytest.mark.usefixtures("quiet")
def test_a_balanced_start(tmp_path: Path) -> None:
    numpy.save(tmp_path / "a.npy", torch.randn(90, 6).numpy())
    options = {"data.root": tmp_path / "a.npy", "name": "run", "runs": tmp_path, **TINY, "model.pretraining_steps": 0}
    options |= {
        "model.clustering": "vqkit.clustering.balanced_kmeans",
        "trainer.max_steps": 1,
        "model.learning_rate": 1e-9,
    }
    run_command("fit", config=small("semantic_ids", tmp_path), **options)
    tokenizer = VectorTokenizer.from_pretrained(tmp_path / "run/tokenizer")
    latents = tokenizer.latents(torch.randn(90, 6))
    codes = tokenizer.quantizer.stages[0].code_vectors()
    assert 0.1 < codes.std() / latents.std() < 3  # of the first start, 1 / K, it would be far less


@pytest.mark.slow
@pytest.mark.usefixtures("quiet")
def test_other_dimensions_are_refused_with_the_fix(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    numpy.save(tmp_path / "a.npy", torch.randn(50, 5).numpy())
    with pytest.raises(SystemExit):
        options = {"data.root": tmp_path / "a.npy", "runs": tmp_path, **TINY, "data.batch_size": 8}
        run_command("fit", config=small("semantic_ids", tmp_path), **options)
    said = capsys.readouterr().err
    assert "vectors of 5 dimensions, and the tokenizer is for 6" in said
    assert "--model.tokenizer.encoder.in_channels 5" in said


def test_residual_kmeans_by_command(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("pyarrow")
    numpy.save(tmp_path / "items.npy", torch.randn(60, 3).numpy())
    words = [str(tmp_path / "items.npy"), "--codes", "4", "16", "--to", str(tmp_path / "km")]
    main(["kmeans", *words, "--balanced"])
    assert "60 items of 3 dimensions" in capsys.readouterr().out
    words = [str(tmp_path / "km"), str(tmp_path / "items.npy"), "--unique", "last_level"]
    with pytest.raises(SystemExit):
        main(["ids", *words, "--to", str(tmp_path / "ids.parquet")])  # 60 items, 4 prefixes of at most 16 codes
    assert "items have the prefix" in capsys.readouterr().err
    numpy.save(tmp_path / "items.npy", torch.randn(20, 3).numpy())
    main(["ids", *words, "--to", str(tmp_path / "ids.parquet")])
    table = IDTable.read(tmp_path / "ids.parquet")
    assert table.suffixes is None and len(table.semantic_ids.unique(dim=0)) == 20
    main(["kmeans", str(tmp_path / "items.npy"), "--codes", "4", "16", "--to", str(tmp_path / "km")])
    with pytest.raises(SystemExit):
        main(["ids", *words, "--to", str(tmp_path / "b.parquet"), "--known", str(tmp_path / "ids.parquet")])
    assert "another codebook" in capsys.readouterr().err


# ---------------------------------------------------------------------- figures


def test_neighbours_are_the_nearest_others() -> None:
    vectors = torch.randn(60, 4).double()
    vectors[7] = vectors[3]  # a copy is a neighbour, itself is not
    queries, neighbours = true_neighbours(vectors, 5)
    distances = torch.cdist(vectors, vectors).fill_diagonal_(torch.inf)
    expected = distances.topk(5, largest=False).indices
    assert queries.equal(torch.arange(60))
    assert neighbours.sort(1).values.equal(expected.sort(1).values)


def test_recall_counts_ties_in_expectation() -> None:
    vectors = torch.randn(40, 4)
    queries, neighbours = true_neighbours(vectors, 5)
    assert recall_by_vectors(queries, neighbours, vectors) == 1
    assert recall_by_vectors(queries, neighbours, torch.zeros(40, 4)) == pytest.approx(5 / 39)
    alone = torch.arange(40)[:, None]
    assert recall_by_prefix(queries, neighbours, alone) == pytest.approx(5 / 39)
    halves = (vectors[:, 0] > vectors[:, 0].median()).long()[:, None]
    same = halves[neighbours][..., 0] == halves[queries]
    others = torch.bincount(halves[:, 0])[halves[queries, 0]] - 1
    assert recall_by_prefix(queries, neighbours, halves) == pytest.approx(float((same.sum(1) / others).mean()))


def test_figures_of_a_set_do_not_depend_on_its_batches() -> None:
    original, copy = 3 + torch.randn(50, 4), 3 + torch.randn(50, 4)
    ids = torch.randint(5, (50, 2))
    scaling = Standardization(4)
    scaling.fit([original])
    figures = []
    for size in (50, 7):
        metrics = VectorMetrics([5, 5], scaling=scaling)
        for part in torch.arange(50).split(size):
            each = metrics.update(original[part], copy[part], ids[part])
        figures.append(metrics.compute())
    assert figures[0] == pytest.approx(figures[1], rel=1e-6)
    ours, theirs = scaling(original).double(), scaling(copy).double()
    lost = (ours - theirs).square().sum() / (ours - ours.mean(0)).square().sum()
    assert figures[0]["explained"] == pytest.approx(float(1 - lost), rel=1e-5)
    assert figures[0]["cosine"] == pytest.approx(float(F.cosine_similarity(ours, theirs).mean()), rel=1e-5)
    assert figures[0]["unique"] == item_figures(ours, theirs, ids)["unique"] and each["cosine"].shape == (1,)
    series = VectorMetrics([5, 5], scaling=scaling)
    series.update(original.T[None], copy.T[None], ids[None])
    found = series.compute()
    assert found["explained"] == pytest.approx(figures[0]["explained"], rel=1e-5)
    assert (
        "unique" not in found and found["items"] == 1 and found["bits_per_vector"] == figures[0]["bits_per_vector"] * 50
    )


def test_objectives() -> None:
    first, second = torch.randn(2, 8, 4)
    assert SquaredError()(first, second) == (first - second).square().mean()
    cosine = 1 - (first * second).sum(1) / first.norm(dim=1) / second.norm(dim=1)
    torch.testing.assert_close(CosineDistance()(first, second), cosine.mean())
    torch.testing.assert_close(CosineDistance()(first.T[None], second.T[None]), cosine.mean())
    with pytest.raises(ValueError, match=r"expected the same \(batch, channels\)"):
        SquaredError()(first, second[:3])


def test_a_table_of_ids_is_checked(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"item_id": [1], "level_2": [3]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a.parquet has the columns item_id, level_2: expected item_id, level_1"):
        IDTable.read(tmp_path / "a.parquet")


def test_codes_that_cannot_be_clustered_are_refused_before_training() -> None:
    quantizer = ResidualQuantizer(lambda: Quantizer("simvq", dim=3, codebook_size=4), 2)
    tokenizer = VectorTokenizer(Passthrough(3), quantizer, Passthrough(3), scaling=CommonScale(3))
    with pytest.raises(ValueError, match=r"stage 0 is a .*whose codes cannot be written: expected stored ones"):
        VectorTokenizerTask(tokenizer, objectives=[SquaredError()], clustering=balanced_kmeans)


def test_scale_of_a_single_row() -> None:
    scaling = CommonScale(3)
    scaling.fit([torch.ones(1, 3)])
    assert scaling(torch.ones(2, 3)).equal(torch.zeros(2, 3))

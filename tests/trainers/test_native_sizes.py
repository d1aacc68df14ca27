"""Pictures that are measured and encoded in their own sizes."""

import json
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from tests.trainers.pictures import draw_pictures
from tests.trainers.test_folder_data import IMAGES
from tests.trainers.test_image_measures import SINGULAR, make_measure
from tests.trainers.tiny import LIGHTNING_REMARKS, Started, make_image_task, make_trainer
from trainers.callbacks import Reconstructions, TokenWriter
from trainers.image import BicubicFilter, CentreCrop, NativeCrop, NativePadding
from trainers.image.metrics import psnr, to_uint8_grid
from vqkit import Tiles, TokenShards
from vqkit.media.pictures import read

pytestmark = LIGHTNING_REMARKS

SIZES = {"a": (40, 36), "b": (67, 33), "c": (33, 67), "d": (40, 36)}  # width, height


@pytest.fixture
def folder(tmp_path):
    for number, (name, (width, height)) in enumerate(SIZES.items()):
        draw_pictures(tmp_path / "pictures" / name, 2, width=width, height=height, seed=10 * number)
    return tmp_path / "pictures"


@pytest.fixture
def weights(folder, tmp_path):
    """A folder with the checkpoint of a tokenizer."""
    trainer = make_trainer(max_steps=1)
    trainer.fit(make_image_task(), datamodule=IMAGES.make(folder, batch_size=3))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    return tmp_path


def predicted(folder: Path, weights: Path, **options) -> tuple:
    """The task and the shards of a prediction."""
    task, data = make_image_task(), IMAGES.make(folder, **({"class_folders": True, "batch_size": 3} | options))
    trainer = make_trainer(callbacks=[TokenWriter(str(weights / "tokens"))])
    checkpoint = weights / "last.ckpt"
    trainer.predict(task, datamodule=data, ckpt_path=checkpoint, return_predictions=False, weights_only=True)
    return task.tokenizer.eval(), TokenShards(weights / "tokens")


@pytest.mark.parametrize(
    ("crop", "tiles"),
    [(NativeCrop(4), None), (NativePadding(8), None), (NativePadding(8), Tiles(16, overlap=4))],
    ids=["cropped", "padded", "tiles"],
)
def test_tokens_of_whole_pictures_have_their_extent_and_class_and_decode_to_it(crop, tiles, folder, weights):
    tokenizer, shards = predicted(folder, weights, prediction_crop=crop, tiles=tiles, batch_size=1)
    assert shards.names == [f"{name}/{number:03d}.png" for name in SIZES for number in range(2)]
    assert shards.class_names == tuple(SIZES)
    for sample in shards:
        name = Path(sample["name"]).parent.name
        pixels = read(folder / sample["name"], shorter_side=None)
        height, width = pixels.shape[:2]
        assert (width, height) == SIZES[name] and sample["label"] == list(SIZES).index(name)
        if crop.pads:
            extent, encoded = (height, width), (-(-height // 8) * 8, -(-width // 8) * 8)
        else:
            extent = encoded = (height // 4 * 4, width // 4 * 4)
        assert tuple(sample["extent"].tolist()) == extent
        assert sample["indices"].shape == (encoded[0] // 4, encoded[1] // 4)
        filled = numpy.pad(
            pixels, [(0, max(0, a - b)) for a, b in zip(encoded, (height, width), strict=True)] + [(0, 0)], "edge"
        )
        image = torch.from_numpy(filled[: encoded[0], : encoded[1]]).permute(2, 0, 1)[None] / 127.5 - 1
        expected = tokenizer.encode(image) if tiles is None else tiles.encode(tokenizer, image)
        assert torch.equal(expected[0], sample["indices"])
        height, width = sample["extent"].tolist()
        assert tokenizer.decode(sample["indices"][None])[..., :height, :width].shape == (1, 3, height, width)


def test_batches_have_one_size_where_they_can(folder):
    data = IMAGES.make(folder, prediction_crop=NativeCrop(4), batch_size=2)
    batches = list(data.predict_dataloader())
    assert [tuple(batch["image"].shape) for batch in batches] == [
        (2, 3, 32, 64),
        (2, 3, 36, 40),
        (2, 3, 36, 40),
        (2, 3, 64, 32),
    ]
    mixed = next(iter(IMAGES.make(folder, prediction_crop=NativeCrop(4), batch_size=8).predict_dataloader()))
    task = make_image_task()
    assert [len(inputs) for inputs in task.evaluation_inputs(mixed)] == [2, 4, 2]
    assert torch.equal(
        torch.cat([x.flatten() for x in mixed["image"]]), torch.cat([x["image"].flatten() for x in batches])
    )


class Letterbox(CentreCrop):
    """A square of one's own, of which a part is picture."""

    def extent(self, height, width):
        return 16, width % 32


def test_a_square_has_the_extent_that_its_crop_says(folder):
    batch = next(iter(IMAGES.make(folder, prediction_crop=Letterbox(BicubicFilter())).predict_dataloader()))
    assert batch["extent"].tolist() == [[16, SIZES[Path(name).parent.name][0] % 32] for name in batch["name"]]


@pytest.mark.parametrize(
    "options",
    [{"prediction_crop": NativeCrop(8)}, {"tiles": Tiles(16)}, {"prediction_crop": CentreCrop(BicubicFilter())}],
    ids=str,
)
def test_a_folder_of_tokens_takes_one_setting(options, folder, weights):
    first = {"prediction_crop": NativeCrop(4)} if "tiles" in options else {}
    predicted(folder, weights, **first)
    with pytest.raises(ValueError, match="was filled with data_hash="):
        predicted(folder, weights, **(first | options))
    assert len(TokenShards(weights / "tokens")) == 8


def test_pictures_are_measured_in_their_own_sizes(folder, tmp_path):
    options = {"evaluation_crop": NativeCrop(4), "validation_root": str(folder)}
    data, single = (IMAGES.make(folder, batch_size=size, **options) for size in (3, 1))
    task = make_image_task()
    trainer = make_trainer(max_steps=1, default_root_dir=tmp_path / "run", callbacks=[Reconstructions()])
    with pytest.warns(UserWarning, match="are training images too"):
        trainer.fit(task, datamodule=data)
        trainer.validate(task, datamodule=data, verbose=False)
        trainer.test(task, datamodule=single, verbose=False)
    record = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert record["protocol"]["preprocessing"]["resolution"] == "native" and record["images"] == 8
    tokenizer, ratios, pixels = task.tokenizer.eval(), [], 0
    for name in SIZES:
        for number in range(2):
            image = torch.from_numpy(read(folder / name / f"{number:03d}.png", shorter_side=None)).permute(2, 0, 1)
            image = image[None, :, : image.shape[1] // 4 * 4, : image.shape[2] // 4 * 4] / 127.5 - 1
            with torch.no_grad():
                reconstruction = tokenizer(image).reconstruction
            ratios.append(float(psnr(to_uint8_grid(image), to_uint8_grid(reconstruction))))
            pixels += image.shape[-1] * image.shape[-2]
    assert record["psnr"] == pytest.approx(sum(ratios) / 8, rel=1e-12)  # float64 sums of the same float32 numbers
    assert record["bpp"] == pytest.approx(4 / 16)  # 16 codes for 4 x 4 pixels
    with Image.open(tmp_path / "run" / "reconstructions.png") as grid:
        assert grid.width >= 8 * 64 and grid.height >= 2 * 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"evaluation_crop": NativeCrop(6)}, r"data\.evaluation_crop=NativeCrop\(multiple=6\): .*factor, 4"),
        ({"prediction_crop": NativePadding(2)}, r"data\.prediction_crop=NativePadding\(multiple=2\): .*factor, 4"),
        ({"tiles": Tiles(18)}, "tiles size=18: expected a multiple of the downsampling factor, 4"),
    ],
)
def test_sizes_that_are_no_patches_are_refused_before_the_first_batch(options, message, folder):
    with pytest.raises(ValueError, match=message):
        make_trainer(max_steps=1).fit(make_image_task(), datamodule=IMAGES.make(folder, **options))


# ---- two processes


def run_on_rank(rank: int, world: int, command: str, folder: Path, root: Path, options: dict) -> None:
    """A prediction, or a measurement, of the weights in `root`, by this process's share of the pictures."""
    devices = {"devices": world, "strategy": "ddp", "plugins": [Started(rank, world)]} if world > 1 else {}
    data = IMAGES.make(folder, **({"class_folders": True, "batch_size": 3} | options))
    task = make_image_task(test_measures=[make_measure()])
    trainer = make_trainer(
        default_root_dir=root / f"{command}{world}",
        callbacks=[TokenWriter(), Reconstructions()],
        use_distributed_sampler=False,
        **devices,
    )
    checkpoint = {"ckpt_path": root / "last.ckpt", "weights_only": True}
    if command == "predict":
        trainer.predict(task, datamodule=data, return_predictions=False, **checkpoint)
    else:
        trainer.test(task, datamodule=data, verbose=False, **checkpoint)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"prediction_crop": NativeCrop(4)},
        {"prediction_crop": NativePadding(8), "tiles": Tiles(16, overlap=4)},
    ],
    ids=["native", "tiles"],
)
def test_two_processes_write_the_tokens_of_one(options, folder, weights, rank_pair):
    run_on_rank(0, 1, "predict", folder, weights, options)
    rank_pair(run_on_rank, 2, "predict", folder, weights, options)
    alone, shared = (TokenShards(weights / f"predict{world}" / "tokens") for world in (1, 2))
    assert len(list((weights / "predict2/tokens").glob("manifest-*-of-00002.json"))) == 2
    assert sorted(shared.names) == sorted(alone.names) and len(alone.names) == 2 * len(SIZES)
    found = {sample["name"]: sample for sample in shared}
    for sample in alone:
        other = found[sample["name"]]
        assert sample.keys() == other.keys() >= {"indices", "label"}
        assert torch.equal(sample["indices"], other["indices"]) and sample["label"] == other["label"]
        assert "extent" not in sample or torch.equal(sample["extent"], other["extent"])


@pytest.mark.slow
@SINGULAR
@pytest.mark.parametrize("group_by", [None, ".*/"])
def test_two_processes_measure_what_one_does(group_by, folder, weights, rank_pair):
    draw_pictures(weights / "training", 3, seed=900)
    draw_pictures(folder / "e", 1, width=67, height=33, seed=70)  # nine: the processes have different numbers
    options = {"evaluation_crop": NativeCrop(4), "validation_root": str(folder), "class_folders": False}
    options["group_by"] = group_by
    run_on_rank(0, 1, "test", weights / "training", weights, options)
    rank_pair(run_on_rank, 2, "test", weights / "training", weights, options)
    alone, shared = (json.loads((weights / f"test{world}" / "metrics.json").read_text()) for world in (1, 2))
    assert shared.pop("protocol") == alone.pop("protocol")
    assert alone["images"] == 9 and "tiny_kernel_distance" in alone
    assert shared == pytest.approx(alone, rel=1e-6, abs=1e-9)  # features in float32, of batches of other sizes

"""Every file in configs/ runs a step, and an overlay changes what it is about and nothing else."""

import itertools

import pytest
import recipes
import yaml

from tests.few import few
from tests.trainers.conftest import ROOT, run_command
from tests.trainers.pictures import draw_pictures
from tests.trainers.recordings import write_recordings
from tests.trainers.teachers import save_wavlm
from trainers.run.bases import read_config

CONFIGS = {f"{path.parent.name}/{path.stem}": path for path in sorted((ROOT / "configs").glob("*/*.yaml"))}
QUICKSTARTS = {"image": CONFIGS["image/quickstart"], "audio": CONFIGS["audio/quickstart"]}
GIVEN = {
    "image/decoder_finetune",
    "image/discriminator_warmup",
    "image/adacode_superresolution",
    "image/adacode_inpainting",
}
"""Of other weights; `test_given.py` and `test_restoration.py` run them."""
STAGES = {name for name in CONFIGS if name.startswith("image/adacode_")}
WHOLE = {name: path for name, path in CONFIGS.items() if name.split("/")[0] in QUICKSTARTS and name not in GIVEN}
RECIPES = {f"image/{name}" for name in recipes.recipes()}
OF_OTHER_CHANNELS = {"image/vae", "image/coda", "image/scales", *RECIPES}
OVERLAID = {name: path for name, path in WHOLE.items() if name not in OF_OTHER_CHANNELS | STAGES}  # overlays have 32
OF_SOUND = {name: CONFIGS[f"quantizers/{name}"] for name in ("single", "snac", "split", "dualcodec")}
OF_QUANTIZERS = {name: path for name, path in CONFIGS.items() if name.startswith("quantizers/")}
OVERLAYS = {name: path for name, path in OF_QUANTIZERS.items() if path.stem not in OF_SOUND}
PAIRS = {
    f"{config.stem} {overlay.stem}": (config, overlay)
    for config, overlay in [
        *itertools.product([path for name, path in OVERLAID.items() if "image" in name], OVERLAYS.values()),
        *itertools.product([QUICKSTARTS["audio"]], OF_SOUND.values()),
    ]
}
LARGE = ("xqgan", "mgvq", "unitok", "dualcodec", "split", "single", "infinity", "vcq", "wetok", "grouped")
USUAL_PAIRS = [name for name in PAIRS if name.startswith("quickstart ") and not name.endswith(LARGE)]
ALIKE_PAIRS = [name for name in PAIRS if not name.startswith(("quickstart ", "photos "))]
"""Of configurations that lie over those two."""

RUNS = {name: ([path], {}) for name, path in WHOLE.items()}
RUNS["image/var_vae"][1].update({"data.resolution": 128, "data.min_size": 32})  # maps of half of its largest scale
RUNS |= {name: ([QUICKSTARTS["image"], path], {}) for name, path in OVERLAYS.items()}
RUNS |= {f"image {word}": ([QUICKSTARTS["image"]], {"quantizer": word}) for word in ("simvq", "fsq")}
RUNS |= {f"audio {word}": ([QUICKSTARTS["audio"]], {"quantizer": word}) for word in ("nsvq", "reinmax", "fsq")}
RUNS |= {name: ([QUICKSTARTS["audio"], path], {}) for name, path in OF_SOUND.items()}
RUNS |= {"single lfq": ([QUICKSTARTS["audio"], OF_SOUND["single"]], {"quantizer": "lfq"})}
ALIKE = ("image/photos_adversarial_blurred", "image/photos_tuned", "image/photos_tuned_adversarial", "image/photos_l2")
USUAL = [name for name in RUNS if name.startswith("image/") and name not in {*RECIPES, *ALIKE, *STAGES}]
USUAL += [
    "audio/quickstart",
    "quantizers/fqgan",
    "image fsq",
    "snac",
]

SMALL = {
    "data.batch_size": 2,
    "data.num_workers": 0,
    "data.validation_root": "null",
    "model.initialization_samples": 32,
}
SMALL |= {"trainer.accelerator": "cpu", "trainer.fast_dev_run": 2}
SMALL_DATA = {
    "image": {"data.resolution": 32},
    "audio": {"data.segment_seconds": 0.2, "data.max_evaluation_seconds": 0.5},
}
SHRUNK = {
    "num_heads": lambda old: old if isinstance(old, list) else 2,
    "num_layers": lambda _: 1,
    "num_res_blocks": lambda _: 1,
    "num_stages": lambda old: min(old, 3),
    "norm_groups": lambda _: 4,
    "depth": lambda _: 1,
    "adapter_depth": lambda _: 1,
    "image_size": lambda _: 32,
    "grid_size": lambda _: [2, 2],
    "min_size": lambda _: 1,
    "scales": lambda old: [size for size in old if 2 * size <= old[-1]],  # of pictures of half the size
    "level_sizes": lambda old: [2, 3, 4, 5, 8, 12, 16],
    "codebook_size": lambda _: 16,  # with so few data there is nothing to fill a large one with
    "pretraining_steps": lambda _: 1,
    "start_step": lambda _: 1,
}
"""What a model is made small by, wherever it stands in a configuration."""


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    draw_pictures(folder / "image", 6)
    write_recordings(folder / "audio", 6, sample_rate=16000)
    return folder


def shrunk(config, channels):
    if isinstance(config, list):
        return [shrunk(item, channels) for item in config]
    if not isinstance(config, dict):
        return config
    # The width of one is that of its network, the width of the other that of the latents, which the quantizer has too.
    if config.get("class_path", "").endswith(("ProjectedDiscriminator", "DepthwiseEncoder1d")):
        return config
    if config.get("class_path", "").endswith(("BlurResidualDiscriminator", "StyleGAN2Discriminator")):
        return config | {"init_args": {"resolution": 32, "channel_base": 64}}
    if config.get("class_path", "").endswith("TimmEncoder"):
        width = {"dim": 1024, "arguments": {"img_size": 32}}  # that of the network whose place it takes
        return config | {"init_args": {"name": "test_vit4", "weights": None, **width}}
    if config.get("class_path", "").endswith("Discriminator"):
        return config | {"init_args": config.get("init_args", {}) | {"channels": 1}}
    if config.get("class_path") in ("trainers.image.TorchvisionNetwork", "trainers.image.TimmNetwork"):
        small = {"name": "squeezenet1_0", "weights": "trainers.image.RandomWeights"}
        return {"class_path": "trainers.image.TorchvisionNetwork", "init_args": small}
    if config.get("class_path") == "trainers.image.VGG16LPIPS":  # building it takes longer than the rest
        return {"class_path": "trainers.image.AlexNetSTLPIPS"}
    small = {key: SHRUNK[key](value) if key in SHRUNK else shrunk(value, channels) for key, value in config.items()}
    if isinstance(small.get("channels"), int):  # ESC's list decides the sizes of its codebooks
        small["channels"] = channels
    return small


def with_tiny_teachers(config, folder):
    """Networks of speech that are small and have random weights, in the place of those in a user's folders."""
    if isinstance(config, list):
        return [with_tiny_teachers(item, folder) for item in config]
    if not isinstance(config, dict):
        return config
    if config.get("class_path") == "trainers.audio.SpeechTeacher":
        return config | {"init_args": {"path": str(save_wavlm(folder / "wavlm"))}}
    return {key: with_tiny_teachers(value, folder) for key, value in config.items()}


@pytest.mark.filterwarnings("ignore:.*initialize got")
@pytest.mark.filterwarnings("ignore:.*AMP with fp16 is not supported on CPU")
@pytest.mark.parametrize("run", few(RUNS, *USUAL))
def test_fit_runs_two_steps(run, roots, tmp_path, quiet):
    configs, options = run
    kind = configs[0].parent.name
    options = {"runs": tmp_path, "data.root": roots / kind, **SMALL, **SMALL_DATA[kind], **options}
    words = []
    for path in configs:
        small = tmp_path / f"{path.parent.name}_{path.name}"
        config = shrunk(read_config(path), channels=32 if kind == "image" else 4)
        small.write_text(yaml.safe_dump(with_tiny_teachers(recipes.without_files(config, tmp_path), tmp_path)))
        words.append(f"--config={small}")
    run_command("fit", *words, **options)


@pytest.mark.parametrize("pair", few(PAIRS, *USUAL_PAIRS, long=ALIKE_PAIRS))
def test_overlay_swaps_the_quantizer_and_nothing_else(pair, roots, capsys):
    config, overlay = pair
    plain, swapped = (printed(configs, roots, capsys) for configs in ([config], [config, overlay]))
    parts, swapped_parts = (made["model"]["init_args"]["tokenizer"]["init_args"] for made in (plain, swapped))
    old, new = parts.pop("quantizer")["init_args"], swapped_parts.pop("quantizer")["init_args"]
    assert plain == swapped
    assert new["channel_dim"] == old["channel_dim"]
    assert dim_of(new) == parts["encoder"]["init_args"]["dim"] == dim_of(old)


def dim_of(arguments):
    """The size of the channel axis; stages share it, and groups and the branches of two encoders add up to it."""
    if "dim" in arguments or "bits" in arguments:
        return arguments["dim"] or arguments["bits"]
    if "branch" in arguments:
        return sum(dim_of(branch["init_args"]) for branch in arguments["branch"])
    if isinstance(arguments.get("group"), list):
        return sum(dim_of(group["init_args"]) for group in arguments["group"])
    if "group" in arguments:
        return arguments["num_groups"] * dim_of(arguments["group"]["init_args"])
    return dim_of(arguments["stage" if "stage" in arguments else "quantizer"]["init_args"])


def printed(configs, roots, capsys):
    with pytest.raises(SystemExit):
        run_command("fit", *(f"--config={path}" for path in configs), f"--data.root={roots}", "--print_config")
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize("config", few(["quickstart", "speech", "dac_24khz", "simvq_single_24khz"], "quickstart"))
def test_with_one_overlay_a_codec_streams(config, roots, capsys):
    path, overlay = CONFIGS[f"audio/{config}"], CONFIGS["streaming/causal"]
    plain, causal = (printed(configs, roots, capsys) for configs in ([path], [path, overlay]))
    for part in ("encoder", "decoder"):
        ahead, back = (config["model"]["init_args"]["tokenizer"]["init_args"][part] for config in (plain, causal))
        assert not ahead["init_args"]["causal"] and back["init_args"]["causal"]
        ahead["init_args"]["causal"] = True
    assert causal == plain


def test_a_config_lies_over_its_base(tmp_path):
    (tmp_path / "base.yaml").write_text(
        "model: {class_path: A, init_args: {x: 1, y: [1, 2]}}\ndata: {class_path: B, init_args: {x: 1}}\nname: base\n"
    )
    (tmp_path / "own.yaml").write_text(
        "base: base.yaml\nmodel.init_args.y: [3]\ndata: {class_path: C}\ntrainer.max_steps: 2\n"
        "model.init_args.schedules: {part.weight: {class_path: D}}\n"
    )
    assert read_config(tmp_path / "own.yaml") == {
        "model": {
            "class_path": "A",
            "init_args": {"x": 1, "y": [3], "schedules": {"part.weight": {"class_path": "D"}}},
        },
        "data": {"class_path": "C"},
        "name": "base",
        "trainer": {"max_steps": 2},
    }


def test_the_semantic_codec_and_its_twin_differ_by_the_teacher_alone():
    taught, plain = (read_config(CONFIGS[f"audio/{name}"]) for name in ("semantic", "semantic_plain"))
    assert taught["model"]["init_args"]["objectives"].pop()["class_path"] == "trainers.audio.FeatureDistillation"
    assert taught | {"name": plain["name"]} == plain


@pytest.mark.parametrize("name", ["dac_16khz", "dac_24khz", "dac_44khz", "encodec_24khz", "mimi_24khz"])
def test_codecs_have_the_published_weights_of_their_stages(name):
    """DAC sums the losses of its stages, weights 0.25 and 1; EnCodec and Mimi average the commitments of those that are
    used, weight 1."""
    tokenizer = read_config(CONFIGS[f"audio/{name}"])["model"]["init_args"]["tokenizer"]["init_args"]
    summed = {"vqkit.Commitment": 0.25, "vqkit.CodebookLoss": 1.0}, "vqkit.SumOverMembers"
    averaged = {"vqkit.Commitment": 1.0}, "vqkit.MeanOverChoices"
    weights, reduction = summed if "dac" in name else averaged
    number = 2 if name == "mimi_24khz" else 1
    found = list(values_in(tokenizer["quantizer"], "losses"))
    assert [{loss["class_path"]: loss["init_args"]["weight"] for loss in losses} for losses in found] == [
        weights
    ] * number
    assert list(values_in(tokenizer["quantizer"], "reduction")) == [reduction] * number


def values_in(node, name):
    """What stands under a name anywhere in a configuration."""
    if isinstance(node, dict):
        yield from [node[name]] if name in node else []
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from values_in(value, name)


def test_mimi_has_the_published_taps():
    """Seven first and three last, in the encoder as in the decoder; `kernel_size` is that of the end at the audio."""
    parts = read_config(CONFIGS["audio/mimi_24khz"])["model"]["init_args"]["tokenizer"]["init_args"]
    taps = {
        part: [parts[part]["init_args"][part]["init_args"][f"{end}kernel_size"] for end in ("", "latent_")]
        for part in ("encoder", "decoder")
    }
    assert taps == {"encoder": [7, 3], "decoder": [3, 7]}

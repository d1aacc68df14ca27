"""TiTok and TA-TiTok: their key trees with random weights against the equations, files that are not theirs, and use."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.conversion import titok as published
from tests.conversion.files import added, planned, refuses, refuses_change, removed
from tests.few import few
from tests.trainers.tiny import LIGHTNING_REMARKS, Images, make_image_task, make_trainer
from trainers.run.origin import Origin
from vqkit import Quantizer, Tokenizer, convert
from vqkit.backbones.latent_tokens import TiTokEncoder
from vqkit.conversion import Family, TATiTok, TiTok

pytestmark = [*LIGHTNING_REMARKS, pytest.mark.filterwarnings("ignore:Found .* in eval mode")]

ROUNDING = 1e-12
"""Some forty layers of sums of a few hundred products of numbers up to about 1, each rounded by 1e-16."""

KINDS: dict[str, published.TiTok] = {
    "codes": published.TiTok(),
    "codes of wider patches": published.TiTok(encoder_patch=4, num_tokens=9, encoder_width=64, decoder_width=128),
    "pixels": published.TiTokPixels(),
    "text": published.TATiTok(),
}


def pictures(number: int = 4) -> Tensor:
    return torch.rand(number, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def family_of(model: published.TiTok) -> Family | None:
    return TATiTok(model.text()) if isinstance(model, published.TATiTok) else None


@cache
def expected(kind: str) -> tuple[Tensor, Tensor, Tensor]:
    return KINDS[kind](pictures())


def state_of(kind: str) -> dict[str, Tensor]:
    expected(kind)
    return dict(KINDS[kind].state)


def converted(kind: str, folder: Path) -> Tokenizer:
    save_file(state_of(kind), folder / "model.safetensors")
    convert(folder / "model.safetensors", folder / "converted", family=family_of(KINDS[kind]))
    return Tokenizer.from_pretrained(folder / "converted")


@pytest.mark.parametrize("kind", few(list(KINDS), "codes", "pixels", "text"))
def test_latents_codes_and_pictures_are_those_of_the_equations(kind, tmp_path) -> None:
    latents, indices, reconstruction = expected(kind)
    assert len(indices.unique()) >= 8
    tokenizer, x = converted(kind, tmp_path).double(), pictures().double()
    torch.testing.assert_close(tokenizer.encoder(x), latents, rtol=0, atol=ROUNDING)
    assert torch.equal(tokenizer.encode(x), indices)
    torch.testing.assert_close(tokenizer(x).reconstruction, reconstruction, rtol=0, atol=ROUNDING)
    torch.testing.assert_close(tokenizer.decode(indices), reconstruction, rtol=0, atol=1e-5)  # codes leave as float32
    first = KINDS[kind].prefix(pictures(), 2)
    torch.testing.assert_close(tokenizer.decode(indices[:, :2]), first, rtol=0, atol=1e-5)
    assert (first - reconstruction).abs().max() > 1e-3


def test_the_loss_is_that_of_the_release(tmp_path) -> None:
    latents, indices, _ = expected("codes")
    codes = torch.nn.functional.normalize(state_of("codes")["quantize.embedding.weight"].double(), dim=-1)[indices]
    direction = latents / latents.norm(dim=-1, keepdim=True)
    error = (codes - direction).square().mean()
    output = converted("codes", tmp_path).double()(pictures().double())
    torch.testing.assert_close(output.quantizer.loss, error + 0.25 * error, rtol=0, atol=ROUNDING)


ON_THE_HUB = {
    "titok s-128": (83.7e6, 0.05e6),
    "titok b-64": (819e6 / 4, 0.5e6 / 4),
    "titok sl-256": (1.32e9 / 4, 5e6 / 4),
}
"""Numbers in the released files and their rounding: 83.7 M as the hub counts, 819 MB and 1.32 GB as it lists them."""


@pytest.mark.slow
@pytest.mark.parametrize("name", published.RELEASED)
def test_models_of_the_published_sizes_have_an_entry_for_each_weight(name) -> None:
    """On the meta device."""
    model = published.released(name)
    if name in ON_THE_HUB:
        stated, rounding = ON_THE_HUB[name]
        assert abs(sum(value.numel() for value in model.state.values()) - stated) < rounding
    text = isinstance(model, published.TATiTok)
    encoder = planned(model.state, TATiTok(model.text().to("meta")) if text else TiTok()).encoder
    assert isinstance(encoder, TiTokEncoder) == (not isinstance(model, published.TiTokPixels))


def test_a_folder_of_the_hub_says_whether_codes_lie_on_the_sphere(tmp_path) -> None:
    save_file(state_of("pixels"), tmp_path / "model.safetensors")
    for said in (True, False):
        settings = {"model": {"vq_model": {"use_l2_norm": said, "quantize_mode": "vq"}}, "dataset": None}
        (tmp_path / "config.json").write_text(json.dumps(settings))
        quantizer = convert(tmp_path, tmp_path / "converted").quantizer
        assert isinstance(quantizer, Quantizer) and quantizer.normalize is said


def test_usage_is_taken_over_as_shares_of_an_equal_one(tmp_path) -> None:
    state = state_of("text")
    shares = state["quantize.embed_prob"] = torch.rand(48).softmax(0)
    torch.save(state, tmp_path / "weights.bin")
    tokenizer = convert(tmp_path / "weights.bin", tmp_path / "converted", family=family_of(KINDS["text"]))
    torch.testing.assert_close(tokenizer.quantizer.codebook.usage, 48 * shares)
    assert tokenizer.provenance is not None and tokenizer.provenance["license"] == "apache-2.0"


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("codes", removed("encoder.transformer.1.mlp.c_fc.bias"), r"c_fc.bias' is missing: expected shape \(512,\)"),
        ("codes", removed("encoder.patch_embed.weight"), "patch_embed.weight' is missing: expected a tensor of 4 axes"),
        ("codes", removed("quantize.embedding"), "it has no codes .* and no variational autoencoder"),
        ("codes", removed("pixel_"), "'pixel_quantize.embedding.weight' is missing: .* first stage of training"),
        ("codes", removed("pixel_decoder.up."), r"there is no entry below 'pixel_decoder\.up\.0'"),
        ("codes", removed("decoder.transformer."), "depth=0: expected a positive number"),
        (
            "codes",
            added("decoder.transformer.0.more", 3),
            r"'decoder.transformer.0.more' of shape .* unexpected",
        ),
        ("codes", added("latent_tokens", 7, 128), r"positional_embedding' has shape \(6, 64\): expected \(7, 64\)"),
        ("codes", added("encoder.conv_out.bias", 5, dtype=torch.int64), "holds torch.int64: expected floating point"),
        ("codes", added("encoder.positional_embedding", 7, 128), "is for 7 tokens: expected one and a square"),
        ("codes", added("encoder.positional_embedding", 5, 96), "its encoder has 96 channels: expected heads of 64"),
        ("codes", added("encoder.positional_embedding", 10, 128), "reads 24 x 24 pixels, its decoder draws 16 x 16"),
        ("pixels", removed("decoder.conv_out.bias"), r"'decoder.conv_out.bias' is missing: expected shape \(3,\)"),
        ("text", removed("decoder.text_guidance_proj.bias"), "text_guidance_proj.bias' is missing"),
        ("text", added("decoder.text_guidance_positional_embedding", 6, 64), r"has shape \(5, 9\): expected \(6, 9\)"),
    ],
)
def test_entries_that_are_not_those_of_the_family_are_named(kind, change, message, tmp_path) -> None:
    refuses_change(".*TiTok", state_of(kind), change, message, tmp_path, family=family_of(KINDS[kind]))


def test_a_text_is_asked_for(tmp_path) -> None:
    refuses(state_of("text"), r"text has shape None: expected \(5, 9\), .* family=TATiTok\(text\)", tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantize_mode": "vae"}, "quantize_mode='vae' in its config.json"),
        ({"use_l2_norm": 1}, "config.json has use_l2_norm=1: expected true or false"),
    ],
)
def test_settings_of_other_models_are_refused(settings, message, tmp_path) -> None:
    save_file(state_of("pixels"), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model": {"vq_model": settings}}))
    with pytest.raises(ValueError, match=message):
        convert(tmp_path, tmp_path / "converted")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["codes", "pixels", "text"])
def test_converted_weights_encode_decode_learn_and_are_saved_again(kind, tmp_path) -> None:
    tokenizer = converted(kind, tmp_path)
    assert tokenizer.decode(tokenizer.encode(pictures())).shape == pictures().shape
    frozen = ["encoder", "quantizer"] if kind == "codes" else []
    task = make_image_task(converted(kind, tmp_path), learning_rate=3e-3, freeze=frozen)
    Origin.of(str(tmp_path / "converted")).load(task)
    make_trainer(max_steps=20).fit(task, datamodule=Images(4))
    task.tokenizer.eval().save_pretrained(tmp_path / "tuned")
    tuned = Tokenizer.from_pretrained(tmp_path / "tuned")
    assert tuned.provenance == tokenizer.provenance
    noise = 1 / 3  # the variance of the pictures, of which hardly more can be learned than their mean
    before, after = ((model(pictures()).reconstruction - pictures()).square().mean() for model in (tokenizer, tuned))
    assert after - noise < (before - noise) / 2
    for name, value in tokenizer.encoder.state_dict().items():
        assert torch.equal(value, tuned.encoder.state_dict()[name]) == (kind == "codes")

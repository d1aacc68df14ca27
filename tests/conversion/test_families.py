"""Published key trees, with random weights, against the equations of the published models."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.conversion.files import planned
from tests.conversion.fqgan import FQGANDual, FQGANTriple
from tests.conversion.magvit2 import OpenMAGVIT2Model, SimVQModel
from tests.conversion.maskgit import MaskGIT
from tests.conversion.published import IBQ, VAR, DiffusersVQ, LlamaGen, OldDiffusersVQ, Published, Taming, TamingGumbel
from tests.conversion.titok import TATiTok
from tests.trainers.tiny import LIGHTNING_REMARKS, Images, make_image_task, make_tokenizer, make_trainer
from trainers.core.checkpoints import saved_tokenizer
from trainers.run.origin import Origin
from vqkit import Tokenizer, convert
from vqkit.conversion import (
    DAC,
    FQGAN,
    SNAC,
    DiffusersVQModel,
    EnCodec,
    Family,
    LlamaGenVQ,
    MaskGITVQGAN,
    Mimi,
    OpenMAGVIT2,
    SeedVokenIBQ,
    SimVQImage,
    TamingGumbelVQGAN,
    TamingVQGAN,
    TransformersDAC,
    TransformersMimi,
    TransformersWavTokenizer,
    VARAutoencoder,
    WavTokenizer,
)
from vqkit.conversion.converting import FAMILIES, family_of
from vqkit.conversion.source import Source
from vqkit.conversion.titok import TATiTok as TATiTokFamily
from vqkit.conversion.titok import TiTok

pytestmark = LIGHTNING_REMARKS

ROUNDING = 1e-12
"""Some forty layers of sums of a few hundred products of numbers up to about 1, each rounded by 1e-16."""

SCALES = (1, 2, 4, 8)
KINDS: dict[str, tuple[type[Published], dict, Family | None]] = {
    "taming": (Taming, {}, None),
    "taming with attention in the middle alone": (Taming, {"attention_levels": ()}, None),
    "taming gumbel": (TamingGumbel, {"attention_levels": (0, 1)}, None),
    "ibq": (IBQ, {"num_res_blocks": 1}, SeedVokenIBQ()),
    "llamagen": (LlamaGen, {}, None),
    "var": (VAR, {}, VARAutoencoder(SCALES)),
    "maskgit": (MaskGIT, {}, None),
    "fqgan": (FQGANDual, {}, None),
    "fqgan triple": (FQGANTriple, {}, None),
    "diffusers": (DiffusersVQ, {"multipliers": (1, 1, 3), "attention_levels": (2,), "num_res_blocks": 2}, None),
    "diffusers without attention": (DiffusersVQ, {"attention_levels": (), "middle_attention": False}, None),
    "old diffusers": (OldDiffusersVQ, {}, None),
    "open magvit2": (OpenMAGVIT2Model, {}, None),
    "open magvit2 of four levels": (OpenMAGVIT2Model, {"multipliers": (1, 2, 2, 4), "num_middle_blocks": 1}, None),
    "simvq": (SimVQModel, {"num_res_blocks": 2}, None),
}


def pictures(size: int = 16) -> torch.Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def published(kind: str) -> tuple[Published, Family | None]:
    cls, options, family = KINDS[kind]
    return cls(**options), family


def saved(kind: str, folder: Path) -> tuple[Path, Family | None]:
    model, family = published(kind)
    model(pictures())
    file = folder / "weights.safetensors"
    save_file(model.checkpoint(), file)
    return file, family


FURTHER = (
    "taming with attention in the middle alone",
    "fqgan triple",
    "diffusers",
    "old diffusers",
    "open magvit2 of four levels",
)
"""Variants of trees that the others show."""


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind in FURTHER)) for kind in KINDS])
def test_latents_codes_and_pictures_are_those_of_the_equations(kind, tmp_path) -> None:
    model, family = published(kind)
    x = pictures(16 if len(model.multipliers) == 2 else 32)
    latents, indices, reconstruction = model(x)
    assert len(indices.unique()) >= 8
    torch.save(model.checkpoint(), tmp_path / "weights.pt")
    tokenizer = convert(tmp_path / "weights.pt", tmp_path / "converted", family=family, license="mit")
    assert tokenizer.provenance == Tokenizer.from_pretrained(tmp_path / "converted").provenance
    tokenizer = Tokenizer.from_pretrained(tmp_path / "converted").double()
    x = x.double()
    torch.testing.assert_close(tokenizer.encoder(x), latents, rtol=0, atol=ROUNDING)
    assert torch.equal(tokenizer.encode(x), indices)
    torch.testing.assert_close(tokenizer(x).reconstruction, reconstruction, rtol=0, atol=ROUNDING)
    torch.testing.assert_close(tokenizer.decode(indices), reconstruction, rtol=0, atol=1e-5)  # codes leave as float32


FULL: list[tuple[type[Published], dict, Family]] = [
    (Taming, {"codebook_size": 1024}, TamingVQGAN()),
    (Taming, {"codebook_size": 16384}, TamingVQGAN()),
    (TamingGumbel, {"codebook_size": 8192, "multipliers": (1, 1, 2, 4), "attention_levels": (3,)}, TamingGumbelVQGAN()),
    (LlamaGen, {"codebook_size": 16384, "dim": 8}, LlamaGenVQ()),
    (LlamaGen, {"codebook_size": 16384, "dim": 8, "multipliers": (1, 2, 2, 4), "attention_levels": (3,)}, LlamaGenVQ()),
    (DiffusersVQ, {"codebook_size": 8192, "multipliers": (1, 2, 2, 4, 6), "attention_levels": (),
                   "middle_attention": False, "dim": 64, "latent_channels": 64}, DiffusersVQModel()),
    (VAR, {"codebook_size": 4096, "channels": 160, "dim": 32, "latent_channels": 32,
           "scales": (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)}, VARAutoencoder()),
    *((OpenMAGVIT2Model, {"dim": dim, "multipliers": multipliers, "num_res_blocks": 4, "num_middle_blocks": 4},
       OpenMAGVIT2()) for dim, multipliers in ((18, (1, 1, 2, 2, 4)), (18, (1, 2, 2, 4)), (14, (1, 1, 2, 2, 4)))),
    *((SimVQModel, {"dim": 128, "multipliers": (1, 2, 2, 4), "codebook_size": size}, SimVQImage())
      for size in (1024, 262144)),
    (MaskGIT, {"codebook_size": 1024}, MaskGITVQGAN()),
    (FQGANDual, {"codebook_size": 16384, "dim": 8, "adapter_depth": 6}, FQGAN()),
    (FQGANTriple, {"codebook_size": 16384, "dim": 8, "adapter_depth": 6, "multipliers": (1, 2, 2, 4),
                   "attention_levels": (3,)}, FQGAN()),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("cls", "options", "family"), FULL)
def test_models_of_the_published_sizes_have_an_entry_for_each_weight(cls, options, family) -> None:
    """On the meta device; what is stored and not needed is counted apart."""
    sizes = {"channels": 128, "multipliers": (1, 1, 2, 2, 4), "num_res_blocks": 2, "attention_levels": (4,)}
    model = cls(**sizes | {"dim": 256, "latent_channels": 256, "device": "meta"} | options)
    model(torch.empty(1, 3, 256, 256, device="meta"))
    planned(model.state, family)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [kind for kind in KINDS if kind not in FURTHER],
)
def test_converted_weights_encode_decode_learn_and_are_saved_again(kind, tmp_path) -> None:
    file, family = saved(kind, tmp_path)
    convert(file, tmp_path / "converted", family=family, license="mit")
    tokenizer = Tokenizer.from_pretrained(tmp_path / "converted")
    assert tokenizer.decode(tokenizer.encode(pictures())).shape == pictures().shape
    task = make_image_task(Tokenizer.from_pretrained(tmp_path / "converted"), learning_rate=1e-3)
    Origin.of(str(tmp_path / "converted")).load(task)
    trainer = make_trainer(max_steps=20)
    trainer.fit(task, datamodule=Images(4))
    task.tokenizer.eval().save_pretrained(tmp_path / "tuned")
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    started, resumed = (make_image_task(Tokenizer.from_pretrained(tmp_path / "tuned")) for _ in range(2))
    for other in (started, resumed):
        other.tokenizer.provenance = None
    Origin.of(str(tmp_path / "last.ckpt")).load(started)
    make_trainer(max_steps=21).fit(resumed, datamodule=Images(4), ckpt_path=tmp_path / "last.ckpt")
    for other in (started, resumed):
        assert other.tokenizer.provenance == tokenizer.provenance
    tuned = Tokenizer.from_pretrained(tmp_path / "tuned")
    noise = 1 / 3  # the variance of the pictures, of which nothing can be learned but their mean
    before, after = ((model(pictures()).reconstruction - pictures()).square().mean() for model in (tokenizer, tuned))
    assert after - noise < (before - noise) / 2
    assert tuned.provenance == tokenizer.provenance and tuned.provenance["license"] == "mit"


@pytest.mark.slow
def test_the_round_is_made_with_every_family() -> None:
    found = set()
    for kind in KINDS:
        model, family = published(kind)
        model(pictures())
        found |= set() if kind in FURTHER else {family or family_of(Source(Path("none"), model.checkpoint(), {}, None))}
    of_their_own = {TATiTokFamily, TiTok}  # `test_titok.py`
    # And those of sound: `test_dac.py`, `test_snac.py`, `test_encodec.py`, `test_mimi.py`, `test_wavtokenizer.py`.
    of_their_own |= {DAC, TransformersDAC, SNAC, EnCodec, Mimi, TransformersMimi}
    of_their_own |= {WavTokenizer, TransformersWavTokenizer}
    assert {type(family) for family in found} | of_their_own == {*FAMILIES}


def test_a_run_keeps_whose_weights_it_started_from(tmp_path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.provenance = {"family": "somebody's", "license": "cc-by-nc-4.0"}
    tokenizer.save_pretrained(tmp_path)
    task = make_image_task()
    Origin.of(str(tmp_path)).load(task)
    checkpoint = {"state_dict": task.state_dict()}
    task.on_save_checkpoint(checkpoint)
    assert saved_tokenizer(checkpoint).provenance == tokenizer.provenance


def test_the_guide_runs(tmp_path, monkeypatch) -> None:
    guide = (Path(__file__).parents[2] / "docs/weights.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    assert len(blocks) == 4
    monkeypatch.chdir(tmp_path)
    for kind, file in (("llamagen", "vq_ds16_c2i.pt"), ("taming", "model.safetensors")):
        model, _ = published(kind)
        model(pictures())
        (save_file if file.endswith("safetensors") else torch.save)(model.state, file)
    model = TATiTok(text_tokens=77, text_dim=768)
    model(pictures())
    Path("tokenizer_tatitok_bl64_vq").mkdir()
    save_file(model.state, "tokenizer_tatitok_bl64_vq/model.safetensors")
    names = {"images": pictures()}
    for block in blocks:
        exec(compile(block, "docs/weights.md", "exec"), names)


@pytest.mark.slow
@pytest.mark.parametrize("attends", [True, False])
def test_it_computes_what_diffusers_does(attends, tmp_path) -> None:
    diffusers = pytest.importorskip("diffusers", reason='pip install -e ".[diffusers]"')
    torch.manual_seed(0)
    kind = "Attn" * attends
    model = diffusers.VQModel(
        block_out_channels=[16, 16, 48],
        layers_per_block=2,
        down_block_types=["DownEncoderBlock2D", "DownEncoderBlock2D", f"{kind}DownEncoderBlock2D"],
        up_block_types=[f"{kind}UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"],
        latent_channels=6,
        vq_embed_dim=5,
        num_vq_embeddings=64,
        norm_num_groups=16,
        mid_block_add_attention=attends,
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    with torch.no_grad():  # codes among the latents, so that several are chosen
        latents, codes = model.encode(pictures()).latents, model.quantize.embedding.weight
        codes.copy_(latents.mean((0, 2, 3)) + latents.std((0, 2, 3)) * torch.randn_like(codes))
    model.save_pretrained(tmp_path / "published")
    tokenizer = convert(tmp_path / "published", tmp_path / "converted").double()
    model, x = model.double().eval(), pictures().double()
    with torch.no_grad():
        latents = model.encode(x).latents
        indices = model.quantize(latents)[2][2].view(2, 4, 4)
        torch.testing.assert_close(tokenizer.encoder(x), latents, rtol=0, atol=ROUNDING)
        assert torch.equal(tokenizer.encode(x), indices) and len(indices.unique()) > 8
        output, expected = tokenizer(x), model(x)
    torch.testing.assert_close(output.reconstruction, expected.sample, rtol=0, atol=ROUNDING)
    torch.testing.assert_close(output.quantizer.loss, expected.commit_loss, rtol=0, atol=ROUNDING)

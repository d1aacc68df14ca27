"""The autoencoder of diffusers as encoder and decoder of a tokenizer, beside the package itself."""

import shutil
import sys

import pytest
import torch

from tests.trainers.tiny import LIGHTNING_REMARKS, Images, make_image_task, make_trainer
from vqkit import GaussianBottleneck, Quantizer, Tokenizer
from vqkit.backbones.autoencoder_kl import AutoencoderKLDecoder, AutoencoderKLEncoder
from vqkit.saving.config import weights_follow

pytestmark = [*LIGHTNING_REMARKS, pytest.mark.filterwarnings("ignore:Found .* in eval mode")]

SIZES = {
    "block_out_channels": [8, 8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "norm_num_groups": 4,
}
KINDS = {
    "stable diffusion": {"latent_channels": 4, "scaling_factor": 0.18215},
    "flux": {
        "latent_channels": 6,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
}


@pytest.fixture(params=KINDS)
def vae(request):
    diffusers = pytest.importorskip("diffusers", reason='pip install -e ".[diffusers]"')
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(**SIZES, **KINDS[request.param])


def images():
    return torch.rand(2, 3, 32, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1


def tokenizer(quantizer, source):
    return Tokenizer(AutoencoderKLEncoder(source), quantizer, AutoencoderKLDecoder(source))


def bottleneck(vae):
    return GaussianBottleneck(vae.config.latent_channels, channel_dim=1)


@pytest.mark.slow
def test_latents_and_images_are_those_of_the_package(vae, tmp_path) -> None:
    vae.save_pretrained(tmp_path)
    x, scale, shift = images(), vae.config.scaling_factor, vae.config.shift_factor or 0.0
    posterior = vae.encode(x).latent_dist
    expected = (posterior.mode() - shift) * scale
    model = tokenizer(bottleneck(vae), str(tmp_path))
    assert torch.equal(model.encoder(x), expected)
    _, log_variance = model.encoder.moments(x).chunk(2, dim=1)
    torch.testing.assert_close((log_variance / 2).exp(), scale * posterior.std, rtol=1e-5, atol=0)
    latents = expected.contiguous()
    assert torch.equal(model.decoder(latents), vae.decode(latents / scale + shift).sample)
    model.double().eval(), vae.double()
    torch.testing.assert_close(model(x.double()).reconstruction, vae(x.double()).sample, rtol=1e-9, atol=1e-9)
    assert (model.encoder.downsampling_factor, model.decoder.downsampling_factor) == (4, 4)
    assert model.decoder.get_submodule(model.decoder.output_layer) is model.decoder.decoder.conv_out


@pytest.mark.slow
def test_a_saved_tokenizer_needs_no_source(vae, tmp_path) -> None:
    vae.save_pretrained(tmp_path / "vae")
    model = tokenizer(bottleneck(vae), str(tmp_path / "vae")).eval()
    model.save_pretrained(tmp_path / "saved")
    shutil.rmtree(tmp_path / "vae")
    loaded = Tokenizer.from_pretrained(tmp_path / "saved").eval()
    assert torch.equal(loaded(images()).reconstruction, model(images()).reconstruction)


@pytest.mark.slow
def test_no_weights_are_read_where_a_state_follows(vae, tmp_path) -> None:
    vae.save_pretrained(tmp_path)
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    with weights_follow():
        encoder = AutoencoderKLEncoder(str(tmp_path), config={"scaling_factor": 0.5})
    assert encoder.dim == vae.config.latent_channels and encoder.encoder.scale == 0.5


@pytest.mark.slow
def test_it_becomes_discrete_with_its_encoder_frozen(vae, tmp_path) -> None:
    vae.save_pretrained(tmp_path)
    quantizer = Quantizer("ema", dim=vae.config.latent_channels, codebook_size=16, channel_dim=1)
    model = tokenizer(quantizer, str(tmp_path))
    assert model.encoder.training
    make_trainer(max_steps=2).fit(make_image_task(model, freeze=["encoder"]), datamodule=Images(4))
    kept, trained = model.encoder.encoder.encoder.state_dict(), model.decoder.decoder.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in vae.encoder.state_dict().items())
    assert not all(torch.equal(value, trained[name]) for name, value in vae.decoder.state_dict().items())


@pytest.mark.slow
def test_it_trains_as_it_was_trained(vae) -> None:
    config = dict(SIZES) | {name: value for name, value in vae.config.items() if name in ("latent_channels",)}
    encoder, decoder = AutoencoderKLEncoder(config=config), AutoencoderKLDecoder(config=config)
    task = make_image_task(Tokenizer(encoder, bottleneck(vae), decoder))
    make_trainer(max_steps=2).fit(task, datamodule=Images(4))
    assert task.tokenizer.quantizer.draws == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "source=None, config=None: expected a folder"),
        ({"source": "nowhere/vae"}, FileNotFoundError, "source='nowhere/vae': there is no such folder"),
        ({"config": SIZES | {"latents_mean": [0.0] * 4}}, ValueError, "latents_mean, latents_std: expected none"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, message) -> None:
    pytest.importorskip("diffusers", reason='pip install -e ".[diffusers]"')
    with pytest.raises(error, match=message):
        AutoencoderKLEncoder(**arguments)


@pytest.mark.parametrize("part", [AutoencoderKLEncoder, AutoencoderKLDecoder])
def test_without_the_package_the_extra_is_named(part, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r'pip install "vqkit\[diffusers\]"'):
        part(config=SIZES)

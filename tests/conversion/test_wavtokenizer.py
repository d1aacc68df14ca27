"""WavTokenizer's weights, in both layouts, against the class of transformers."""

from pathlib import Path

import pytest
import torch

from tests.conversion.files import added, changes_refused, planned, removed
from tests.conversion.sound import sound
from tests.conversion.wavtokenizer import authors_checkpoint, wavtokenizer
from tests.trainers.tiny import LIGHTNING_REMARKS, Sounds, make_audio_task, make_trainer
from trainers.audio import MultiResolutionMel
from trainers.run.origin import Origin
from vqkit import AudioTokenizer, Tokenizer, convert
from vqkit.conversion import TransformersWavTokenizer, WavTokenizer

pytestmark = LIGHTNING_REMARKS

ROUNDING = 1e-10
"""Float64: some fifty sums of at most a few hundred products of numbers up to about 10."""
SINGLE = 1e-5
"""Transformers computes spectra in float32; a sample is the sum of four windows of some tens of frequencies."""
RATIOS = (3, 2, 2)
SECOND_CODEBOOK = "feature_extractor.encodec.quantizer.vq.layers.1._codebook.embed"


def published(kind: str, folder: Path, ratios: tuple[int, ...] = RATIOS) -> Path:
    """A file of the authors, or a folder of transformers."""
    model = wavtokenizer(ratios)
    if kind == "transformers":
        model.save_pretrained(folder / "published")
        return folder / "published"
    torch.save(authors_checkpoint(model), folder / "wavtokenizer.ckpt")
    return folder / "wavtokenizer.ckpt"


@pytest.mark.parametrize("kind", ["transformers", "authors"])
@pytest.mark.parametrize("condition", [0, 2])
def test_latents_codes_and_sound_are_those_of_transformers(kind: str, condition: int, tmp_path: Path) -> None:
    family = {"transformers": TransformersWavTokenizer, "authors": WavTokenizer}[kind](condition)
    file = published(kind, tmp_path)
    convert(file, tmp_path / "converted", family=family if condition else None)
    codec = Tokenizer.from_pretrained(tmp_path / "converted").double()
    assert isinstance(codec, AudioTokenizer)
    assert (codec.sample_rate, codec.downsampling_factor, codec.kbps) == (24000, 12, 10.0)
    assert codec.provenance is not None and codec.provenance["license"] == "mit"
    assert ("dacdiscriminator." in codec.provenance.get("left_out", "")) == (kind == "authors")
    model, wave = wavtokenizer(RATIOS).double(), sound(40, 12)
    with torch.no_grad():
        latents = model.encoder_model.encoder(wave)
        torch.testing.assert_close(codec.encoder(wave), latents, rtol=0, atol=ROUNDING)
        codes = model.encode(wave).audio_codes
        assert len(codes.unique()) >= 8 and torch.equal(codec.encode(wave), codes[:, 0])
        expected = model.decode(codes, bandwidth_id=condition).audio_values.double()
        torch.testing.assert_close(codec.decode(codes[:, 0]).double(), expected, rtol=0, atol=SINGLE)
    model.float()


@pytest.mark.parametrize("ratios", [(8, 5, 4, 2), pytest.param((6, 5, 5, 4), marks=pytest.mark.slow)])
def test_strides_of_the_released_models(ratios: tuple[int, ...], tmp_path: Path) -> None:
    convert(published("authors", tmp_path, ratios), tmp_path / "converted")
    codec = Tokenizer.from_pretrained(tmp_path / "converted").double()
    model = wavtokenizer(ratios).double()
    wave = sound(12, codec.downsampling_factor)
    with torch.no_grad():
        assert torch.equal(codec.encode(wave), model.encode(wave).audio_codes[:, 0])
    model.float()


@pytest.mark.slow
@pytest.mark.parametrize(("ratios", "tokens"), [((6, 5, 5, 4), 40), ((8, 5, 4, 2), 75)])
def test_models_of_the_published_sizes_have_an_entry_for_each_weight(ratios: tuple[int, ...], tokens: int) -> None:
    """On the meta device."""
    from transformers import WavTokenizerConfig, WavTokenizerModel

    with torch.device("meta"):
        model = WavTokenizerModel(WavTokenizerConfig(upsampling_ratios=list(ratios)))
    codec = planned(model.state_dict())
    assert isinstance(codec, AudioTokenizer) and codec.frame_rate == tokens


@pytest.mark.slow
def test_it_is_converted_learns_and_is_saved_again(tmp_path: Path) -> None:
    convert(published("authors", tmp_path), tmp_path / "converted")
    codec = Tokenizer.from_pretrained(tmp_path / "converted")
    assert isinstance(codec, AudioTokenizer)
    wave = sound(20, 12).float()
    assert codec.decode(codec.encode(wave)).shape == wave.shape
    for refused, reason in (
        (lambda: codec.streaming().__enter__(), "streaming needs a causal encoder and decoder"),
        (lambda: list(codec.encode_blocks([wave])), "blocks need a bounded context, and this model has none"),
        (lambda: list(codec.decode_blocks([codec.encode(wave)])), "blocks need a bounded context"),
    ):
        with pytest.raises(ValueError, match=reason):
            refused()
    mel = MultiResolutionMel(24000, weight=1.0, window_lengths=[64, 128], mel_bins=[5, 10])
    task = make_audio_task(Tokenizer.from_pretrained(tmp_path / "converted"), objectives=[mel])
    Origin.of(str(tmp_path / "converted")).load(task)
    make_trainer(max_steps=20).fit(task, datamodule=Sounds(4, sample_rate=24000))
    task.tokenizer.eval().save_pretrained(tmp_path / "tuned")
    tuned = Tokenizer.from_pretrained(tmp_path / "tuned")
    assert tuned.provenance == codec.provenance
    assert not torch.equal(tuned.decoder.embedding.weight, codec.decoder.embedding.weight)
    assert torch.equal(tuned.decode(tuned.encode(wave)), task.tokenizer.decode(task.tokenizer.encode(wave)))


test_entries_that_are_not_those_of_the_family_are_named = changes_refused(
    "WavTokenizer",
    lambda: authors_checkpoint(wavtokenizer(RATIOS))["state_dict"],
    (removed("backbone.pos_net.2.q.weight"), r"'backbone.pos_net.2.q.weight' is missing: expected"),
    (removed("head.out.weight"), "entry 'head.out.weight' is missing: expected a tensor of 2 axes"),
    (added("backbone.pos_net.6.weight", 3), "pos_net.6.weight' of shape .* is"),
    (added("backbone.norm.scale.weight", 2, 32), r"expected \(2, 32\)"),
    (added(SECOND_CODEBOOK, 32, 6), "_codebook.embed' of shape .* is unexp"),
)


def test_conditions_and_settings_that_there_are_not_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="condition=-1: expected 0 or more"):
        WavTokenizer(-1)
    folder = published("transformers", tmp_path)
    with pytest.raises(ValueError, match="has 3 rows: expected more than condition=3"):
        convert(folder, tmp_path / "converted", family=TransformersWavTokenizer(3))
    config = (folder / "config.json").read_text()
    for old, new, message in (
        ('"pad_mode": "reflect"', '"pad_mode": "constant"', "config.json has pad_mode='constant': expected 'reflect'"),
        ('"sampling_rate": 24000', '"sampling_rate": 0', "config.json has sampling_rate=0: expected a positive whole"),
    ):
        assert old in config
        (folder / "config.json").write_text(config.replace(old, new))
        with pytest.raises(ValueError, match=message):
            convert(folder, tmp_path / "converted")

"""EnCodec with random weights, of its own package and of transformers, against the converted tokenizers."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from tests.conversion.files import added, changes_refused, planned, refuses, removed
from tests.few import few
from trainers.run.bases import read_config
from vqkit import AudioTokenizer, SegmentTokenizer, Tokenizer, convert
from vqkit.saving.config import to_config

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*[Tt]orchaudio"),
]

RECIPE = Path(__file__).parents[2] / "configs/audio/encodec_24khz.yaml"
ROUNDING = 1e-12
"""Some thirty layers of sums of a few dozen products of numbers up to about 1, each rounded by 1e-16."""
IN_FLOAT32 = 1e-5
"""Filters of transposed convolutions are made anew of theirs, and vectors leave the quantizer, both as float32."""
RATE, BITS = 480, 4
"""480 Hz and a hop of 24 samples: 20 frames a second, 16 codes, so that a level has 0.08 kbit/s."""
BANDWIDTHS = {0.08: 1, 0.16: 2, 0.32: 4}


class Upstream(NamedTuple):
    """A model of others, and what is asked of it.

    Attributes:
        model: in float32, with random weights.
        save: writes its weights into a folder, and says what to convert.
        codes: recording and kbit/s -> codes of each segment, (B, frames, levels).
        sound: recording and kbit/s -> what is decoded of it.
    """

    model: nn.Module
    save: Callable[[Path], Path]
    codes: Callable[[Tensor, float], list[Tensor]]
    sound: Callable[[Tensor, float], Tensor]


def of_the_package(music: bool) -> Upstream:
    encodec = pytest.importorskip("encodec", reason='pip install -e ".[dev]"')
    from encodec.modules import SEANetDecoder, SEANetEncoder
    from encodec.quantization import ResidualVectorQuantizer

    channels = 2 if music else 1
    sizes = {"n_filters": 4, "dimension": 6, "ratios": [4, 3, 2], "causal": not music, "channels": channels}
    sizes["norm"] = "time_group_norm" if music else "weight_norm"
    quantizer = ResidualVectorQuantizer(dimension=6, n_q=4, bins=2**BITS, kmeans_init=False)
    encoder, decoder = SEANetEncoder(**sizes), SEANetDecoder(**sizes)
    segments = {"normalize": True, "segment": 1.0} if music else {}
    model = encodec.EncodecModel(encoder, decoder, quantizer, [*BANDWIDTHS], RATE, channels, **segments)

    def save(folder: Path) -> Path:
        torch.save(model.state_dict(), folder / "encodec.th")
        (folder / "config.json").write_text(json.dumps({"sampling_rate": RATE}))
        return folder / "encodec.th"

    def codes(wave: Tensor, bandwidth: float) -> list[Tensor]:
        model.set_target_bandwidth(bandwidth)
        return [found.mT for found, _ in model.encode(wave)]

    def sound(wave: Tensor, bandwidth: float) -> Tensor:
        model.set_target_bandwidth(bandwidth)
        return model(wave)

    return Upstream(model.eval(), save, codes, sound)


def of_transformers(music: bool) -> Upstream:
    transformers = pytest.importorskip("transformers", reason='pip install -e ".[teachers]"')
    segments = {"normalize": True, "chunk_length_s": 1.0, "overlap": 0.01} if music else {}
    config = transformers.EncodecConfig(
        target_bandwidths=[*BANDWIDTHS],
        sampling_rate=RATE,
        audio_channels=2 if music else 1,
        hidden_size=6,
        num_filters=4,
        upsampling_ratios=[4, 3, 2],
        norm_type="time_group_norm" if music else "weight_norm",
        use_causal_conv=not music,
        codebook_size=2**BITS,
        **segments,
    )
    model = transformers.EncodecModel(config)

    def save(folder: Path) -> Path:
        model.save_pretrained(folder)
        return folder

    def codes(wave: Tensor, bandwidth: float) -> list[Tensor]:
        found = model.encode(wave, bandwidth=bandwidth)
        pieces = [piece.mT for piece in found.audio_codes]
        return [*pieces[:-1], pieces[-1][:, : pieces[-1].shape[1] - (found.last_frame_pad_length or 0)]]

    def sound(wave: Tensor, bandwidth: float) -> Tensor:
        return model(wave, bandwidth=bandwidth).audio_values[..., : wave.shape[-1]]

    return Upstream(model.eval(), save, codes, sound)


KINDS: dict[str, tuple[Callable[[bool], Upstream], bool]] = {
    "release, 24 kHz": (of_the_package, False),
    "release, 48 kHz": (of_the_package, True),
    "transformers, 24 kHz": (of_transformers, False),
    "transformers, 48 kHz": (of_transformers, True),
}


def upstream(kind: str) -> tuple[Upstream, Tensor]:
    """A model whose weights all count, with codes among its latents; and a recording."""
    build, music = KINDS[kind]
    torch.manual_seed(0)
    found = build(music)
    wave = 0.3 * torch.randn(2, 2 if music else 1, 1000 if music else 20 * 24)
    with torch.no_grad():
        for name, parameter in found.model.named_parameters():
            spread = 0.5 if parameter.ndim < 3 and "lstm" not in name else 0.2
            parameter += spread * torch.randn_like(parameter)
        latents = found.model.encoder(wave[..., :480] / 0.3)
        for name, buffer in found.model.named_buffers():
            if name.endswith(".embed"):
                buffer.copy_(latents.mean((0, 2)) + latents.std((0, 2)) * torch.randn_like(buffer))
                latents = latents / 2
            elif name.endswith("cluster_size"):
                buffer.copy_(1 + torch.rand_like(buffer))
    return found, wave


@cache
def speech_state() -> dict[str, Tensor]:
    return upstream("release, 24 kHz")[0].model.state_dict()


def converted(found: Upstream, folder: Path) -> Tokenizer:
    convert(found.save(folder), folder / "converted")
    return Tokenizer.from_pretrained(folder / "converted")


@pytest.mark.parametrize("kind", few(list(KINDS), "release, 48 kHz", "transformers, 24 kHz"))
@torch.no_grad()
def test_codes_and_sound_are_those_of_the_release_at_each_bandwidth(kind, tmp_path) -> None:
    found, wave = upstream(kind)
    codec = converted(found, tmp_path).double()
    assert isinstance(codec, SegmentTokenizer if KINDS[kind][1] else AudioTokenizer)
    model, wave = found.model.double(), wave.double()
    latents = model.encoder(wave[..., :480])
    torch.testing.assert_close(codec.encoder(wave[..., :480]), latents, rtol=0, atol=ROUNDING)
    if KINDS[kind][1]:  # without weight norm, so that decoders have the same numbers
        torch.testing.assert_close(codec.decoder(latents), model.decoder(latents), rtol=0, atol=ROUNDING)
    for bandwidth, levels in BANDWIDTHS.items():
        codes, sound = found.codes(wave, bandwidth), found.sound(wave, bandwidth)
        assert len(torch.cat(codes, 1).unique()) >= 5
        if isinstance(codec, SegmentTokenizer):
            segments = codec.encode_segments(wave)
            assert len(segments.indices) == 3 and segments.indices[-1].shape[1] == 3  # the last, of 50 samples
            ours, decoded = segments.indices, codec.decode_segments(segments, levels=levels)
        else:
            ours = [codec.encode(wave)]
            decoded = codec.decode(ours[0][..., :levels])
        assert all(torch.equal(mine[..., :levels], theirs) for mine, theirs in zip(ours, codes, strict=True))
        torch.testing.assert_close(decoded, sound, rtol=0, atol=IN_FLOAT32, check_dtype=False)


def test_usage_is_taken_over_and_stages_learn_as_in_the_recipe(tmp_path) -> None:
    found, _ = upstream("release, 24 kHz")
    quantizer = converted(found, tmp_path).quantizer
    sizes = [buffer for name, buffer in found.model.named_buffers() if name.endswith("cluster_size")]
    for stage, size in zip(quantizer.stages, sizes, strict=True):
        assert torch.equal(stage.codebook.usage, size) and stage.losses[0].weight == 1.0


@pytest.mark.parametrize("kind", few(["release, 24 kHz", "release, 48 kHz"], "release, 48 kHz"))
@torch.no_grad()
def test_forward_gives_the_sound_of_the_release(kind, tmp_path) -> None:
    found, wave = upstream(kind)
    codec, wave = converted(found, tmp_path), wave[..., : 475 if KINDS[kind][1] else 480]  # one segment of the release
    torch.testing.assert_close(codec(wave).reconstruction, found.sound(wave, 0.32), rtol=0, atol=IN_FLOAT32)


def test_that_at_24_khz_streams(tmp_path) -> None:
    found, wave = upstream("release, 24 kHz")
    codec = converted(found, tmp_path)
    assert isinstance(codec, AudioTokenizer) and codec.causal
    with codec.streaming():
        pieces = [codec.encode(chunk) for chunk in wave.split([200, 100, 80, 100], -1)]
        sound = [codec.decode(piece) for piece in pieces]
    assert torch.equal(torch.cat(pieces, 1), codec.encode(wave))
    torch.testing.assert_close(torch.cat(sound, -1), codec.decode(codec.encode(wave)), rtol=0, atol=IN_FLOAT32)


test_entries_that_are_not_those_of_the_family_are_named = changes_refused(
    "EnCodec",
    speech_state,
    (removed(".*shortcut"), r"no entry below 'encoder.model.1.shortcut': .* models of audiocraft"),
    (removed(r"encoder.model.4.block.1.*_v"), r"'encoder.model.4.block.1.conv.conv.weight_v' is missing"),
    (removed(".*lstm.bias_hh_l1"), r"'decoder.model.1.lstm.bias_hh_l1' is missing"),
    (removed(".*layers.2.*cluster_size"), r"'quantizer.vq.layers.2._codebook.cluster_size' is missing"),
    (removed("encoder.model.0"), r"'encoder.model.0.conv.conv.weight' is missing: expected a tensor of 3 axes"),
    (removed("encoder.model.12.conv.conv.bias"), r"'encoder.model.12.conv.conv.bias' is missing"),
    (added("more", 3), r"entry 'more' of shape \(3,\) is unexpected"),
)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pad_mode": "constant"}, "pad_mode='constant': expected 'reflect'"),
        ({"use_causal_conv": False}, "use_causal_conv=False: expected True"),
        ({"normalize": True}, "normalize=True: expected False"),
        ({"sampling_rate": "24000"}, "sampling_rate='24000': expected a positive whole number"),
    ],
)
def test_settings_of_other_models_are_refused(settings, message, tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(settings))
    refuses(speech_state(), message, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("music", [False, True], ids=["24 kHz", "48 kHz"])
def test_models_of_the_published_sizes_have_an_entry_for_each_weight(music) -> None:
    """On the meta device; the release has 15 M parameters at both rates."""
    encodec = pytest.importorskip("encodec", reason='pip install -e ".[dev]"')
    with torch.device("meta"):
        model = getattr(encodec.EncodecModel, f"encodec_model_{48 if music else 24}khz")(pretrained=False)
    tokenizer = planned(model.state_dict())
    assert isinstance(tokenizer, AudioTokenizer)
    assert (tokenizer.sample_rate, tokenizer.channels, tokenizer.kbps) == ((48000, 2, 24) if music else (24000, 1, 24))
    if not music:
        recipe = read_config(RECIPE)["model"]["init_args"]["tokenizer"]["init_args"]
        for part in ("encoder", "decoder"):
            ours = to_config(tokenizer.get_submodule(part))["init_args"]
            for name, value in recipe[part]["init_args"].items():
                factory = {"activation": "factory", "transformer": "init_args"}.get(name)
                stated = value["init_args"] if name == "transformer" else value
                assert stated == (ours[name] if factory is None else ours[name][factory]), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_converted_weights_learn_and_are_saved_again(kind, tmp_path) -> None:
    found, wave = upstream(kind)
    tokenizer = converted(found, tmp_path)
    tuned, wave = Tokenizer.from_pretrained(tmp_path / "converted").train(), wave[..., :480]
    optimizer = torch.optim.Adam(tuned.parameters(), lr=5e-3)
    for _ in range(20):
        output = tuned(wave)
        optimizer.zero_grad()
        ((output.reconstruction - wave).square().mean() + output.quantizer.loss).backward()
        optimizer.step()
        tuned.quantizer.step()
    tuned.eval().save_pretrained(tmp_path / "tuned")
    tuned = Tokenizer.from_pretrained(tmp_path / "tuned")
    assert tuned.provenance == tokenizer.provenance and tuned.provenance["license"] == "mit"
    noise = wave.square().mean()  # of which 20 steps learn hardly more than the mean
    before, after = ((model(wave).reconstruction - wave).square().mean() for model in (tokenizer, tuned))
    assert after - noise < (before - noise) / 2

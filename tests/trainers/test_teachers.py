"""Networks of speech as teachers: features, frames, and that nothing trains or saves them."""

import importlib.util
import json

import pytest
import torch
from torch import nn

from tests.trainers.teachers import KINDS, save_hubert, save_wavlm
from trainers.audio import SpeechTeacher
from trainers.audio.networks.teacher import on_frames
from vqkit.tokenizers.resampling import resample

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:transformers")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    there = tmp_path_factory.mktemp("teachers")
    return {kind: str(save(there / kind)) for kind, save in KINDS.items()}


def sound(samples: int) -> torch.Tensor:
    time = torch.arange(samples) / 16000
    pitch = torch.tensor([[300.0], [1100.0]])
    noise = torch.randn(2, samples, generator=torch.Generator().manual_seed(1))
    return 0.3 * torch.sin(2 * torch.pi * pitch * time) + 0.05 * noise


def upstream(folder: str):
    from transformers import AutoFeatureExtractor, AutoModel

    return AutoModel.from_pretrained(folder).eval(), AutoFeatureExtractor.from_pretrained(folder)


def close(found, expected) -> None:
    """Equal up to some tens of roundings of the largest number."""
    torch.testing.assert_close(found, expected, rtol=0, atol=256 * 2**-24 * expected.abs().max().item())


# ------------------------------------------------------------------ features


@pytest.mark.parametrize("kind", ["wavlm", "hubert"])
def test_networks_of_samples_hear_what_they_hear_in_transformers(folders, kind) -> None:
    """Of a window of 20 samples for each 20, no samples are filled in."""
    network, extractor = upstream(folders[kind])
    waves = sound(400)
    given = extractor(list(waves.numpy()), sampling_rate=16000, return_tensors="pt").input_values
    with torch.no_grad():
        expected = network(given, output_hidden_states=True).hidden_states
    found = SpeechTeacher(folders[kind])(waves, 16000)
    assert len(found) == len(expected) == 4
    for one, other in zip(found, expected, strict=True):
        close(one, other.mT)


def test_whisper_hears_what_it_hears_in_transformers(folders) -> None:
    network, extractor = upstream(folders["whisper"])
    waves = sound(16000)
    given = extractor(list(waves.numpy()), sampling_rate=16000, return_tensors="pt").input_features
    with torch.no_grad():
        output = network.encoder(given, output_hidden_states=True)
    found = SpeechTeacher(folders["whisper"])(waves, 16000)
    close(found[-1], output.last_hidden_state.mT)
    close(found[1], output.hidden_states[1].mT)


def test_bands_of_w2v_bert_are_kaldis(folders) -> None:
    network, extractor = upstream(folders["w2v_bert"])
    front = SpeechTeacher(folders["w2v_bert"]).held
    filled = front.padded(sound(3200), 560)
    given = extractor(list(filled.numpy()), sampling_rate=16000, return_tensors="pt").input_features
    with torch.no_grad():
        expected = network(given, output_hidden_states=True).hidden_states
        for one, other in zip(front(sound(3200)), expected, strict=True):
            # numpy computes the bands in float64, and a band of nearly nothing has a logarithm of few digits
            torch.testing.assert_close(one, other, rtol=0, atol=1e-3 * other.abs().max().item())


@pytest.mark.parametrize("kind", KINDS)
def test_dropped_layers_leave_the_others_as_they_are(folders, kind) -> None:
    whole, some = SpeechTeacher(folders[kind]), SpeechTeacher(folders[kind], layers=[1, -4])
    assert some.layers == (1, 0)
    expected, found = whole(sound(1600), 16000), some(sound(1600), 16000)
    assert torch.equal(found[0], expected[1]) and torch.equal(found[1], expected[0])
    sizes = [sum(part.numel() for part in teacher.held.parameters()) for teacher in (some, whole)]
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize("kind", KINDS)
def test_every_begun_frame_has_features(folders, kind) -> None:
    teacher = SpeechTeacher(folders[kind], layers=[-1])
    for samples in (321, 640, 1601):
        (features,) = teacher(sound(samples), 16000)
        assert features.shape == (2, teacher.width, -(-samples // teacher.held.hop))
        assert features.isfinite().all()


def test_the_middle_of_a_window_is_the_middle_of_its_samples(tmp_path) -> None:
    folder = save_wavlm(tmp_path / "wide", conv_kernel=[10, 7])
    front = SpeechTeacher(str(folder), layers=[0]).held
    assert (front.hop, front.window) == (20, 10 + 6 * 5)
    windows = front.padded(torch.arange(1.0, 201)[None], front.window).unfold(-1, front.window, front.hop)
    assert windows.shape == (1, 10, 40)
    expected = torch.arange(1.0, 201).unflatten(0, (10, 20)).mean(-1)
    torch.testing.assert_close(windows[0, 1:-1].mean(-1), expected[1:-1])


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_the_sound(folders, kind) -> None:
    waves = sound(800).requires_grad_()
    teacher = SpeechTeacher(folders[kind], layers=[-1])
    teacher(waves, 16000)[0].square().sum().backward()
    assert waves.grad.abs().amax(dim=1).gt(0).all() and waves.grad.isfinite().all()


def test_other_sample_rates_and_stereo_are_converted(folders) -> None:
    teacher = SpeechTeacher(folders["wavlm"], layers=[1])
    waves = torch.stack([sound(960), -0.5 * sound(960)], dim=1)
    expected = teacher(resample(0.25 * sound(960), 24000, 16000), 16000)[0]
    torch.testing.assert_close(teacher(waves, 24000)[0], expected, rtol=0, atol=1e-3 * expected.abs().max().item())


# ------------------------------------------------------------------ nothing trains or saves it


def test_it_is_no_part_of_what_holds_it(folders) -> None:
    model = nn.ModuleDict({"teacher": SpeechTeacher(folders["wavlm"])})
    assert not list(model.parameters()) and not model.state_dict()
    teacher = model.train()["teacher"]
    assert not any(part.training for part in teacher.held.modules())
    assert not any(parameter.requires_grad for parameter in teacher.held.parameters())
    model.bfloat16()
    assert {parameter.dtype for parameter in teacher.held.parameters()} == {torch.float32}
    assert teacher(sound(400).bfloat16(), 16000)[0].dtype == torch.float32


def test_it_stays_in_float32_under_autocast(folders) -> None:
    teacher = SpeechTeacher(folders["w2v_bert"], layers=[-1])
    plain = teacher(sound(800), 16000)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(teacher(sound(800), 16000)[0], plain)


def test_what_is_built_behind_it_draws_as_without_it(folders) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    SpeechTeacher(folders["whisper"])
    assert torch.equal(torch.rand(3), expected)


# ------------------------------------------------------------------ frames


def averaged(features, feature_rate, frames, frame_rate, window):
    """The means by ten thousand points of each frame."""
    columns = []
    for frame in range(frames):
        middle = min((frame + 0.5) / frame_rate, (features.shape[-1] - 0.5) / feature_rate)
        offsets = (torch.arange(10000, dtype=torch.float64) + 0.5) / 10000 - 0.5
        points = (middle + offsets * window / frame_rate) * feature_rate
        points = points[(points >= 0) & (points < features.shape[-1])].long()
        columns.append(features[..., points].mean(-1))
    return torch.stack(columns, dim=-1)


@pytest.mark.parametrize(
    ("feature_rate", "frame_rate", "window"),
    [(50, 50, 1), (50, 12.5, 1), (50, 12.5, 2), (50, 100, 1), (50, 75, 1), (49.9, 86.13, 1.5)],
)
def test_features_are_averaged_over_frames(feature_rate, frame_rate, window) -> None:
    features = torch.randn(2, 3, 20, dtype=torch.float64)
    frames = round(20 / feature_rate * frame_rate)
    found = on_frames(features, feature_rate, frames, frame_rate, window=window)
    # a border between features may lie between two of the points
    expected = averaged(features, feature_rate, frames, frame_rate, window)
    torch.testing.assert_close(found, expected, rtol=0, atol=20 * 1e-4 * features.abs().max().item())


def test_equal_rates_and_whole_ratios_need_no_arithmetic() -> None:
    features = torch.randn(2, 3, 8, dtype=torch.float64)
    assert torch.equal(on_frames(features, 50, 8, 50), features)
    torch.testing.assert_close(on_frames(features, 50, 2, 12.5), features.unflatten(-1, (2, 4)).mean(-1))
    torch.testing.assert_close(on_frames(features, 50, 16, 100), features.repeat_interleave(2, dim=-1))


def test_the_last_feature_goes_on() -> None:
    features = torch.randn(1, 2, 3, dtype=torch.float64)
    found = on_frames(features, 50, 6, 50)
    torch.testing.assert_close(found, features[..., [0, 1, 2, 2, 2, 2]])


# ------------------------------------------------------------------ what is refused


def test_folders_that_hold_no_teacher_are_refused(tmp_path, folders, monkeypatch) -> None:
    with pytest.raises(ValueError, match=r"path='nowhere' of a teacher: expected a folder with config.json"):
        SpeechTeacher("nowhere")
    with pytest.raises(ValueError, match=r"layers=\[4\]: expected numbers from -4 to 3, the hidden states"):
        SpeechTeacher(folders["wavlm"], layers=[4])
    with pytest.raises(ValueError, match=r"layers=\[\]"):
        SpeechTeacher(folders["wavlm"], layers=[])
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="holds a network of model_type 'bert': expected whisper, wav2vec2-bert"):
        SpeechTeacher(str(tmp_path))
    folder = save_hubert(tmp_path / "hubert")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=r"has no preprocessor_config.json, which says how"):
        SpeechTeacher(str(folder))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs transformers: pip install 'vqkit\[teachers\]'"):
        SpeechTeacher(folders["wavlm"])


def test_whisper_hears_so_much_at_once(folders) -> None:
    with pytest.raises(ValueError, match=r"waves of 1.02 s: Whisper hears at most 1 s; take shorter segments"):
        SpeechTeacher(folders["whisper"])(torch.zeros(1, 16001), 16000)

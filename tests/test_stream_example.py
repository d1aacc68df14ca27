"""examples/stream.py on real speech and a small untrained codec: the sound of the file, levels, and what is refused."""

import pytest
import soundfile
import torch

from tests.command_line.test_recordings import clip
from tests.few import few
from tests.test_audio_tokenizer import HOP, make_codec
from tests.test_examples import load_example


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codec") / "tokenizer"
    codec = make_codec(levels=2)
    codec.save_pretrained(folder)
    return folder, codec


def run(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["stream.py", *map(str, words)])
    load_example("stream").main()


@pytest.mark.parametrize("milliseconds", few([1.0, 37.0, 5000.0], 37.0))
def test_a_stream_gives_the_sound_of_the_file(saved, tmp_path, monkeypatch, capsys, milliseconds):
    folder, codec = saved
    source = clip(tmp_path / "speech.wav", 0.5)
    wave = torch.from_numpy(soundfile.read(source, dtype="float32")[0])[None, None]
    for levels, words in ((2, ()), (1, ("--levels", 1))):
        run(monkeypatch, folder, source, tmp_path / "a.wav", "--chunk-ms", milliseconds, *words)
        streamed, _ = soundfile.read(tmp_path / "a.wav", dtype="float32")
        whole = codec.decode(codec.encode(wave)[..., :levels])[0, 0].clamp(-1, 1)
        assert len(streamed) == -(-wave.shape[-1] // HOP) * HOP
        # 16 bits, written as the nearest of 32767 steps and read as that of 32768
        torch.testing.assert_close(torch.from_numpy(streamed), whole, atol=1.5 * 2**-15 + 1e-6, rtol=0)
    assert f"algorithmic delay {1000 * HOP / 8000:g} ms" in capsys.readouterr().out


def test_what_cannot_be_streamed_ends_in_a_line_and_leaves_nothing(saved, tmp_path, monkeypatch):
    source = clip(tmp_path / "speech.wav", 0.1)
    for words, reason in (
        ((tmp_path / "nowhere.wav", tmp_path / "a.wav"), "there is no such file; expected a recording"),
        ((source, source), "source and target are one file"),
        ((source, tmp_path / "a.m4a"), "expected a format that libsndfile writes"),
        ((source, tmp_path / "a.wav", "--levels", 3), "--levels 3: expected 1 to 2"),
    ):
        with pytest.raises(SystemExit) as caught:
            run(monkeypatch, saved[0], *words)
        assert str(caught.value).startswith("error: ") and reason in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["speech.wav"]

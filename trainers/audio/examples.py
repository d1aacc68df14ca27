"""What a codec makes of recordings, for ears and eyes: pairs of sounds and their spectrograms."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import soundfile
from torch import Tensor

from trainers.audio.figures import spectrogram_figure
from vqkit.saving.files import write_whole


def write_sounds(
    folder: Path, originals: Sequence[Tensor], reconstructions: Sequence[Tensor], sample_rate: int
) -> list[Path]:
    """Write 16 bit WAV files `00_original.wav`, `00_reconstruction.wav`, `01_original.wav` and so on.

    Args:
        folder: made if it is not there.
        originals: (C, T) each, in [-1, 1]; what lies beyond is clipped.
        reconstructions: like `originals`.
        sample_rate: in Hz.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, pair in enumerate(zip(originals, reconstructions, strict=True)):
        for kind, wave in zip(("original", "reconstruction"), pair, strict=True):
            sound = BytesIO()
            samples = wave.detach().float().clamp(-1, 1).cpu().T.numpy()
            soundfile.write(sound, samples, sample_rate, format="WAV", subtype="PCM_16")
            paths.append(folder / f"{number:02d}_{kind}.wav")
            write_whole(paths[-1], sound.getvalue())
    return paths


def write_spectrograms(
    path: Path, originals: Sequence[Tensor], reconstructions: Sequence[Tensor], sample_rate: int
) -> Path:
    """Draw a row for each recording: the original's spectrogram, and its reconstruction's in the same colours.

    Args:
        path: PNG to write.
        originals: (C, T) each; channels are averaged.
        reconstructions: like `originals`.
        sample_rate: in Hz.

    Returns:
        `path`.
    """
    columns = {
        title: [wave.detach().float().cpu().nan_to_num(0.0, 0.0, 0.0).mean(0) for wave in waves]
        for title, waves in (("original", originals), ("reconstruction", reconstructions))
    }
    captions = {title: ["seconds"] * len(waves) for title, waves in columns.items()}
    spectrogram_figure(columns, captions, path, sample_rate=sample_rate)
    return path

"""Networks of speech whose features others are taught."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from trainers.audio.networks.front_ends import FRONT_ENDS, FrontEnd
from trainers.core.evaluation import new_tensors_in_float32
from trainers.core.held import HeldModule
from vqkit.runtime import autocast_disabled
from vqkit.saving.files import read_json
from vqkit.tokenizers.resampling import resample

OFFLINE = {"local_files_only": True, "trust_remote_code": False}
"""Nothing is downloaded, and nobody is asked whether code that lies in the folder may run."""


class SpeechTeacher(HeldModule[FrontEnd]):
    """A network of speech of transformers, in a folder, that is used and never trained; see `HeldModule`.

    WavLM, HuBERT, wav2vec 2.0 and their kin, w2v-BERT 2.0, and the encoder of Whisper. It hears sound at its own sample
    rate, and gradients reach the sound. It stays in float32 where a model of 16 bits is trained, and under autocast.

    Args:
        path: folder with `config.json`, the weights, and `preprocessor_config.json`, such as
            `huggingface-cli download microsoft/wavlm-large --local-dir FOLDER` makes. Nothing is downloaded here, and
            no code of the folder runs.
        layers: which hidden states: 0 is what enters the first transformer layer, n what layer n gives, and negative
            numbers count from the end; None for all. Layers behind the last of them are dropped.

    Attributes:
        path: as given.
        layers: as given, from 0 on.
        width: F.
        frame_rate: frames of features for each second.

    Raises:
        ImportError: transformers is not installed.
        ValueError: there is no such folder or layer, or the network is of another kind.
    """

    def __init__(self, path: str, *, layers: Sequence[int] | None = None) -> None:
        front = _load(path)
        there = front.depth + 1
        chosen = range(there) if layers is None else layers
        if not chosen or not all(-there <= layer < there for layer in chosen):
            raise ValueError(
                f"layers={layers}: expected numbers from {-there} to {there - 1}, the hidden states of path={path!r}, "
                "0 being what enters the first layer"
            )
        numbers = tuple(layer % there for layer in chosen)
        # One more than is read: some networks put a norm behind the last layer that they have.
        front.keep_layers(max(numbers) + 1)
        super().__init__(front)
        self.path = path
        self.layers = numbers
        self.width = front.width
        self.frame_rate = front.sample_rate / front.hop

    def forward(self, waves: Tensor, sample_rate: int) -> list[Tensor]:
        """The features.

        Args:
            waves: (B, T) or (B, C, T) in [-1, 1], of which the mean over the channels is taken.
            sample_rate: of `waves`, in Hz.

        Returns:
            of each of `layers` (B, F, frames) in float32 (float64 where the model is), one frame for each begun
            1 / `frame_rate` seconds.
        """
        mono = waves.mean(1) if waves.ndim == 3 else waves
        front = self.held
        weight = next(front.parameters())
        with autocast_disabled(waves.device):
            states = front(resample(mono.to(weight.dtype), sample_rate, front.sample_rate))
        return [states[layer].mT for layer in self.layers]

    def extra_repr(self) -> str:
        """What `repr` shows."""
        return f"{type(self.held).__name__}, path={self.path!r}, layers={self.layers}"


def _load(path: str) -> FrontEnd:
    """The network in a folder, behind its features.

    Raises:
        ImportError: transformers is not installed.
        ValueError: there is none, or one of another kind.
    """
    if importlib.util.find_spec("transformers") is None:
        raise ImportError(f"the teacher {path!r} needs transformers: pip install 'vqkit[teachers]'")
    from transformers import AutoFeatureExtractor, AutoModel

    if not (Path(path) / "config.json").is_file():
        raise ValueError(f"path={path!r} of a teacher: expected a folder with config.json, as transformers saves it")
    kind = str(read_json(Path(path) / "config.json").get("model_type"))
    if kind not in FRONT_ENDS:
        raise ValueError(f"path={path!r} holds a network of model_type {kind!r}: expected {', '.join(FRONT_ENDS)}")
    try:
        extractor = AutoFeatureExtractor.from_pretrained(path, **OFFLINE)
    except OSError as error:
        raise ValueError(
            f"path={path!r} has no preprocessor_config.json, which says how the network wants its sound: expected the "
            "file of the same repository"
        ) from error
    # Also inside of a measurement, or where Lightning makes a model's dtype the default; others draw as without it.
    with torch.inference_mode(False), new_tensors_in_float32(), torch.random.fork_rng(devices=[]):
        network = AutoModel.from_pretrained(path, dtype=torch.float32, **OFFLINE)
        return FRONT_ENDS[kind](network, extractor)


def on_frames(features: Tensor, feature_rate: float, frames: int, frame_rate: float, *, window: float = 1.0) -> Tensor:
    """Features as means over the frames of a codec.

    Frame i is given the mean of the features over the time from (i + 1/2 - window/2) / frame_rate to
    (i + 1/2 + window/2) / frame_rate, each weighted by how much of it lies inside, and behind the last one that one
    goes on. So a codec of fewer frames than features takes means of several, and one of more frames repeats them.

    Args:
        features: (B, F, m), the features of the time from j / feature_rate to (j + 1) / feature_rate.
        feature_rate: m for each second.
        frames: n.
        frame_rate: n for each second.
        window: length of what is averaged in frames of the codec; Mimi has 2, a kernel of 8 for steps of 4.

    Returns:
        (B, F, n)
    """
    count, ratio = features.shape[-1], feature_rate / frame_rate
    numbers, starts = (torch.arange(n, dtype=features.dtype, device=features.device) for n in (frames, count))
    middle = ((numbers + 0.5) * ratio).clamp(max=count - 0.5).unsqueeze(-1)
    first, last = middle - window * ratio / 2, middle + window * ratio / 2
    inside = (torch.minimum(last, starts + 1) - torch.maximum(first, starts)).clamp(min=0)
    return features @ (inside / inside.sum(-1, keepdim=True)).mT

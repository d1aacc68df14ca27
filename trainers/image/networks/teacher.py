"""Tokenizers that others learn from."""

from pathlib import Path

import torch
from torch import Tensor, nn

from trainers.core.evaluation import new_tensors_in_float32
from trainers.core.held import HeldModule
from vqkit import Tokenizer
from vqkit.backbones.protocol import properties_of
from vqkit.precision import FullPrecisionModule
from vqkit.runtime import autocast_disabled


class SavedTokenizer(HeldModule["_Held"]):
    """A saved tokenizer of pictures that is used and never trained.

    It is a `HeldModule`, and stays in float32 where a model of 16 bits is trained, and under autocast.

    Args:
        folder: of `save_pretrained`, such as `tokenizer` of a run, or one that `python -m vqkit convert` wrote.

    Attributes:
        folder: as given.

    Raises:
        ValueError: there is no such tokenizer, or it takes no pictures in [-1, 1].
    """

    def __init__(self, folder: str) -> None:
        if not Path(folder).is_dir():
            raise ValueError(
                f"teacher={folder!r}: expected the folder of a saved tokenizer, such as that of a run; python -m vqkit "
                "convert WEIGHTS FOLDER writes published ones"
            )
        with torch.inference_mode(False), new_tensors_in_float32(), torch.random.fork_rng(devices=[]):
            tokenizer = Tokenizer.from_pretrained(folder)
        quantizer = tokenizer.quantizer
        if tokenizer.value_range not in (None, (-1.0, 1.0)) or quantizer.channel_dim != 1:
            raise ValueError(
                f"teacher={folder!r} has value_range={tokenizer.value_range} and latents with channel_dim="
                f"{quantizer.channel_dim}: expected a tokenizer of pictures in [-1, 1] with a grid of codes"
            )
        super().__init__(_Held(tokenizer))
        self.folder = folder

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, in eval mode."""
        return self.held.tokenizer

    @torch.no_grad()
    def vectors(self, images: Tensor) -> Tensor:
        """What its decoder reads of images (B, C, H, W) in [-1, 1]: the quantized vectors (B, D, h, w)."""
        with autocast_disabled(images.device):
            return self.tokenizer.quantizer(self.tokenizer.encoder(images.to(torch.float32))).quantized

    def extra_repr(self) -> str:
        """What `repr` shows."""
        return repr(self.folder)


class Teacher(SavedTokenizer):
    """One of one code for each patch, which others learn to predict.

    Args:
        folder: see `SavedTokenizer`.

    Attributes:
        codebook_size: K.

    Raises:
        ValueError: see `SavedTokenizer`; or its codes have levels.
    """

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        quantizer = self.tokenizer.quantizer
        if quantizer.level_axis or not quantizer.index_per_position or not quantizer.codebook_sizes:
            raise ValueError(
                f"teacher={folder!r} has codebook_sizes={quantizer.codebook_sizes}: expected one code for each patch"
            )
        self.codebook_size = quantizer.codebook_size

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """The codes (B, h, w) int64 of images (B, C, H, W) in [-1, 1]."""
        with autocast_disabled(images.device):
            return self.tokenizer.encode(images)

    @torch.no_grad()
    def give(self, codes: nn.Embedding, decoder: nn.Module) -> None:
        """Copy the code vectors and the decoder.

        Args:
            codes: an embedding of K codes, which becomes the table.
            decoder: of the class of the teacher's, which gets its weights.

        Raises:
            ValueError: they are of other sizes, or the decoder is of another class.
        """
        table = self.table()
        if table.shape != codes.weight.shape:
            raise ValueError(
                f"teacher={self.folder!r} has {len(table)} codes of {table.shape[1]} channels: expected "
                f"{codes.num_embeddings} of {codes.embedding_dim}, those of the tokenizer's head; give it the "
                "teacher's codebook_size, and its pixels the teacher's dim"
            )
        own, theirs = decoder.state_dict(), self.tokenizer.decoder.state_dict()
        shapes, asked = ({name: tuple(value.shape) for name, value in state.items()} for state in (theirs, own))
        faults = sorted(name for name in shapes.keys() | asked.keys() if shapes.get(name) != asked.get(name))
        if type(decoder) is not type(self.tokenizer.decoder) or faults:
            which = f": {faults[0]!r} is {shapes.get(faults[0])} and {asked.get(faults[0])}" if faults else ""
            raise ValueError(
                f"teacher={self.folder!r} has another decoder, {type(self.tokenizer.decoder).__name__}, than the "
                f"tokenizer's head, {type(decoder).__name__}{which}; give pixels the class and the arguments that the "
                "teacher's config.json has for its decoder"
            )
        codes.weight.copy_(table)
        decoder.load_state_dict(theirs)

    @torch.no_grad()
    def table(self, device: torch.device | None = None) -> Tensor:
        """The code vectors (K, D)."""
        codes = torch.arange(self.codebook_size, device=device).reshape(-1, 1, 1)
        return self.tokenizer.quantizer.decode(codes).flatten(1)

    @torch.no_grad()
    def check_given(self, codes: nn.Embedding) -> None:
        """Refuse an embedding whose codes are not the teacher's, up to a rounding to 16 bits.

        Raises:
            ValueError: they are others.
        """
        own, given = self.table(codes.weight.device).float(), codes.weight.float()
        if not torch.allclose(given, own, rtol=1e-2, atol=1e-2 * own.abs().mean().item()):
            raise ValueError(
                f"teacher={self.folder!r} has other code vectors than the head of the weights that training starts "
                "from: it would learn to predict codes that it does not draw; name the teacher of these weights, or "
                'take none of the decoder: --init_parts "[encoder,quantizer]"'
            )

    @property
    def patch_size(self) -> int | None:
        """Pixels on a side of what a code stands for, where the encoder says it."""
        return properties_of(self.tokenizer.encoder).downsampling_factor

    def extra_repr(self) -> str:
        """What `repr` shows."""
        return f"{super().extra_repr()}, codebook_size={self.codebook_size}"


class _Held(FullPrecisionModule):
    """The tokenizer, outside of all modules."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

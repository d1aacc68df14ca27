"""Codebooks of 8 bits a number, and what that changes."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vqkit.deployment.bake import Module, bake, strip
from vqkit.parts.codebooks import Codebook
from vqkit.parts.int8 import Int8Codebook
from vqkit.quantizers.base import BaseQuantizer
from vqkit.quantizers.quantizer import Quantizer


@dataclass(frozen=True)
class CodeChange:
    """What another quantizer of the same sizes makes of the same latents.

    Attributes:
        changed: for each level the share of its indices that are others.
        distortion_before: mean squared error of a number, by the first quantizer.
        distortion_after: the same by the other one.
        bytes_before: of all codebooks in a file of the first one.
        bytes_after: the same of the other one.
    """

    changed: tuple[float, ...]
    distortion_before: float
    distortion_after: float
    bytes_before: int
    bytes_after: int

    def __str__(self) -> str:
        """In a line."""
        levels = ", ".join(f"{share:.2%}" for share in self.changed)
        return (
            f"{levels} of the indices changed; mean squared error {self.distortion_before:.6g} -> "
            f"{self.distortion_after:.6g}; codebooks {self.bytes_before:,} -> {self.bytes_after:,} bytes"
        )


@torch.no_grad()
def to_int8(module: Module, *, codebook: type[Int8Codebook] = Int8Codebook) -> Module:
    """`bake`, with every stored codebook in 8 bits: a copy for inference whose file has a quarter of their bytes.

    Unlike `bake` it changes codes, hence some indices: `code_change` tells how many. Tokens and files of
    `vqkit.bitstream` that were made before belong to the model before: encode with the copy what the copy shall decode.

    Args:
        module: as for `bake`.
        codebook: `Int8Codebook`, or `RowScaledInt8Codebook` with a scale for each code.

    Returns:
        A module of the same class; `save_pretrained` and `from_pretrained` know it.

    Raises:
        ValueError: as for `bake`; nothing in it stores codes; one of its quantizers has two tables or codes that are
            not finite, is built where the configuration does not reach, or takes no codebook (`TopKQuantizer`,
            `PursuitQuantizer`).
    """
    baked = bake(module)
    books: dict[Codebook, Int8Codebook] = {}
    for name, part in baked.named_modules():
        if isinstance(part, BaseQuantizer) and not isinstance(part, Quantizer) and part.codebook is not None:
            raise ValueError(
                f"{name or type(part).__name__}: {type(part).__name__} builds its codebook itself, and would load one "
                "of float32: leave it as `bake` stores it"
            )
        if isinstance(part, Quantizer):
            if part.codebook.rows != "frozen" or not {"codebook", "estimator", "maintenance"} <= set(
                part.recorded_arguments()
            ):
                raise ValueError(
                    f"{name or type(part).__name__}: {type(module).__name__} builds its {type(part.codebook).__name__} "
                    "where the configuration does not reach: take that quantizer as an argument, or convert it by "
                    "itself"
                )
            if part.codebook not in books:
                books[part.codebook] = codebook.of(part.codebook)
            part.codebook = books[part.codebook]
    if not books:
        raise ValueError(f"{type(module).__name__} stores no codebook: to_int8 has nothing to round")
    strip(baked)
    return baked


@torch.no_grad()
def code_change(before: BaseQuantizer, after: BaseQuantizer, latents: Iterable[Tensor]) -> CodeChange:
    """Compare two quantizers on the same latents: such as one and what `to_int8` makes of it.

    Args:
        before: of which indices and distortion are the measure.
        after: with as many codes in each level.
        latents: tensors in the layout of `forward`, such as the encoder's outputs. Vectors that are not finite do not
            count.

    Raises:
        ValueError: levels differ, or `latents` holds no vector.
    """
    if before.level_sizes != after.level_sizes:
        raise ValueError(f"level_sizes are {before.level_sizes} and {after.level_sizes}: expected the same")
    changed = total = torch.zeros(len(before.level_sizes), dtype=torch.int64, device=before.latent_spread.device)
    errors, numbers = [0.0, 0.0], 0
    for x in latents:
        vectors, valid, _ = before.open(x)
        rows = []
        for place, quantizer in enumerate((before, after)):
            indices = quantizer.encode(x)
            decoded = quantizer.decode(indices).movedim(quantizer.channel_dim, -1)
            errors[place] += float((decoded - vectors)[valid].double().square().sum())
            rows.append(quantizer.by_level(indices).reshape(-1, len(before.level_sizes)))
        changed = changed + ((rows[0] != rows[1]) & (rows[0] >= 0)).sum(0)
        total = total + (rows[0] >= 0).sum(0)
        numbers += int(valid.sum()) * before.dim
    if not numbers:
        raise ValueError("latents: expected at least one finite vector to compare, got none")
    shares = (changed.cpu().double() / total.cpu().clamp(min=1)).tolist()
    sizes = codebook_bytes(before), codebook_bytes(after)
    return CodeChange(tuple(shares), errors[0] / numbers, errors[1] / numbers, *sizes)


def codebook_bytes(module: nn.Module) -> int:
    """Bytes that the codebooks of a module take in a file of `save_pretrained`."""
    books = {part for part in module.modules() if isinstance(part, Codebook)}
    states = (value for book in books for value in book.state_dict().values())
    return sum(value.numel() * value.element_size() for value in states)

"""Ordered tokens: in training a sample keeps its first tokens alone, so that any prefix of them decodes."""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from vqkit.quantizers.base import BaseQuantizer
from vqkit.quantizers.composite import SampleDropout, build_one
from vqkit.quantizers.lengths import PrefixLengths, UniformLengths
from vqkit.quantizers.output import Quantized
from vqkit.quantizers.reduction import SumOverMembers


class PrefixQuantizer(SampleDropout):
    """A quantizer of ordered tokens: in training a sample may keep its first n tokens alone.

    Tokens are the positions of a sample in row-major order: of (B, N, D) or of TiTok's (B, D, 1, N) the N vectors. What
    lies behind the prefix has index -1, no loss and no statistics, and the decoder gets 0 there, or the mask token. In
    a loss it counts as 0, so that every token that is kept weighs the same in a batch, and on all ranks.

    Outside of training nothing is cut, and any prefix decodes: `decode(indices[:, :n])` gives n vectors, as the decoder
    of One-D-Piece takes them; `decode(prefix(indices, n))` gives N, as that of FlexTok does, and as it was in training.

        >>> tokens = functools.partial(Quantizer, "vq", dim=12, codebook_size=4096, normalize=True)
        >>> quantizer = PrefixQuantizer(tokens, lengths=PowerOfTwoLengths())

    Args:
        quantizer: builds the quantizer of the tokens: any, composites too.
        lengths: the distribution of n.
        dropout: probability, per sample and training step, that it is cut.
        mask_token: whether a trained vector takes the place of every token with index -1, masked ones too; otherwise 0
            does.
        channel_dim: see `BaseQuantizer`; the quantizer itself has -1.
        seed: of the draws.

    Source: nested dropout, Rippel, Gelbart, Adams 2014 (arXiv:1402.0915), over tokens as in One-D-Piece, Miwa et al.
    2025 (arXiv:2501.10064), and FlexTok, Bachmann et al. 2025 (arXiv:2502.13967), whose mask token starts as ours does.
    Differs: lengths are drawn for each sample, as in FlexTok; One-D-Piece draws one for each batch, and its losses look
    at all tokens.

    Raises:
        ValueError: an argument is out of its range, or `quantizer` lists several.
    """

    member_name = "quantizer"

    def __init__(
        self,
        quantizer: Sequence[Callable[[], BaseQuantizer]] | Callable[[], BaseQuantizer],
        *,
        lengths: PrefixLengths = UniformLengths(),  # noqa: B008 - stateless
        dropout: float = 1.0,
        mask_token: bool = False,
        channel_dim: int = -1,
        seed: int = 0,
    ) -> None:
        tokens = build_one(quantizer, owner="PrefixQuantizer")
        named = {"channel_dim": channel_dim, "reduction": SumOverMembers()}
        super().__init__([tokens], tokens.dim, dropout=dropout, lengths=lengths, seed=seed, **named)
        self.quantizer = tokens
        self.level_axis = self.quantizer.level_axis
        self.has_mask_token = mask_token
        self.mask_token = nn.Parameter(torch.empty(self.dim, dtype=torch.float32)) if mask_token else None
        if self.mask_token is not None:
            nn.init.trunc_normal_(self.mask_token, std=0.02)

    @property
    def members(self) -> Iterable[BaseQuantizer]:
        """The quantizer of the tokens."""
        return [self.quantizer]

    def prefix(self, indices: Tensor, length: int | Tensor) -> Tensor:
        """Indices with -1 behind the first tokens of each sample, as training cuts them.

        Args:
            indices: (B, *S[, levels]), as `encode` returns them.
            length: how many tokens to keep, at least 0; or (B,), for each sample.

        Raises:
            ValueError: `length` is no such number.
        """
        positions = indices.shape[:-1] if self.level_axis else indices.shape
        lengths = torch.as_tensor(length, device=indices.device)
        if lengths.shape not in ((), positions[:1]) or lengths.is_floating_point() or (lengths < 0).any():
            raise ValueError(
                f"length={length}: expected the number of tokens to keep, at least 0, or one for each of "
                f"{positions[0]} samples"
            )
        kept = _in_prefix(lengths.expand(positions[0]), positions)
        return torch.where(kept.unsqueeze(-1) if self.level_axis else kept, indices, -1)

    def quantize(self, latents: Tensor, valid: Tensor) -> Quantized:
        """Quantize the tokens that are kept; see `BaseQuantizer`."""
        step, positions = self.number_forward(latents), math.prod(valid.shape[1:])
        lengths = self.sample_lengths(step, valid.shape[0], positions)
        kept = valid if lengths is None else valid & _in_prefix(lengths, valid.shape)
        made = self.quantizer.quantize(latents, kept)
        return Quantized(self._filled(made.vectors, kept), made.indices, valid, members=[made], source=self)

    def assign(self, latents: Tensor, valid: Tensor) -> Tensor:
        """The indices of all tokens; see `BaseQuantizer`."""
        return self.quantizer.assign(latents, valid)

    def lookup(self, indices: Tensor) -> Tensor:
        """The vectors of the tokens, and the mask token where an index is -1; see `BaseQuantizer`."""
        return self._filled(self.quantizer.lookup(indices), self.has_index(indices))

    def chosen_vectors(self, quantized: Quantized) -> Tensor:
        """What was chosen for the tokens that are kept; see `BaseQuantizer`."""
        made = quantized.members[0]
        return self._filled(self.quantizer.chosen_vectors(made), made.valid)

    def initialize(self, latents: Iterable[Tensor], *, samples: int | None = None, seed: int = 0) -> None:
        """Initialize the quantizer of the tokens on whole samples; see `BaseQuantizer` and the `initialize` there."""
        self.quantizer.initialize((x.movedim(self.channel_dim, -1) for x in latents), samples=samples, seed=seed)

    def _filled(self, vectors: Tensor, chosen: Tensor) -> Tensor:
        """(..., dim) with the mask token where `chosen` (...) is False, and 0 is without one."""
        return vectors if self.mask_token is None else torch.where(chosen.unsqueeze(-1), vectors, self.mask_token)

    def extra_repr(self) -> str:
        """The mask token, dropout and layout."""
        return f"mask_token={self.mask_token is not None}, {super().extra_repr()}"


def _in_prefix(lengths: Tensor, shape: Sequence[int]) -> Tensor:
    """(B, *S) bool, True at the first `lengths` (B,) positions of each sample in row-major order."""
    places = torch.arange(math.prod(shape[1:]), device=lengths.device).reshape(shape[1:])
    return places < lengths.reshape(-1, *[1] * (len(shape) - 1))

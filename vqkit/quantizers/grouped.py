"""Grouped (product) quantization: each group quantizes its own slice of the channels."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from vqkit import distributed
from vqkit.parts.compatibility import check_groups
from vqkit.quantizers.base import BaseQuantizer
from vqkit.quantizers.composite import CompositeQuantizer, DepthDropout, build_members, used
from vqkit.quantizers.disentanglement import GroupLoss
from vqkit.quantizers.initialization import MemberWarnings, collect_vectors, enough_samples
from vqkit.quantizers.lengths import NestedLengths, PrefixLengths
from vqkit.quantizers.output import Quantized
from vqkit.quantizers.reduction import MeanOverMembers, Reduction


class GroupedQuantizer(CompositeQuantizer):
    """Several quantizers side by side, each on consecutive channels: one token is one index per group.

    The first group takes the first `group.dim` channels, the second the next, and so on; `dim` is their sum. Groups may
    differ in method, dim and codebook size, and a group may itself be a composite, which contributes its levels to
    the last axis of the indices. K_1 ... K_G codes together name K_1 * ... * K_G vectors.

        >>> one = functools.partial(Quantizer, "vq", dim=16, codebook_size=1024)
        >>> two = functools.partial(FSQ, [8, 5, 5, 5])
        >>> GroupedQuantizer(one, 4)  # four groups of 16 channels
        >>> GroupedQuantizer([one, two])  # 16 channels, then 4

    FQGAN's factorized quantization is groups with `codebook_dim=8, normalize=True` and `losses=[Disentanglement()]`.
    The adapter of each branch belongs to the encoder (`vqkit.backbones.factorized.FactorizedEncoder2d`), whose output
    channels are the branches' one after another; the groups have `dim=8` then.

    The channels of a group that a prefix of the levels does not reach, or whose index is -1, decode to 0: what is
    there of the others is exact, but a decoder makes something of it only where it was trained for less than all
    groups, as by a `NestedGroupedQuantizer`.

    Args:
        group: builds one group, and is called `num_groups` times so that no two share a codebook; or a list of one
            factory for each group.
        num_groups: at least 1; None with a list.
        losses: penalties between groups, added to the total with their weights; names must differ.
        reduction: how the groups' own losses make one; `SumOverMembers()` for FQGAN.
        channel_dim: see `BaseQuantizer`; the groups themselves have -1.

    Source: product quantization, Jégou, Douze, Schmid 2011 (https://doi.org/10.1109/TPAMI.2010.57); FQGAN, Bai et al.
    2024 (arXiv:2411.16681).
    Differs: what decoding gives are the groups' own channels (a linear map of the concatenated codes is the decoder's
    first layer; with `codebook_dim` it is block-diagonal, one `project_out` for each group).

    Raises:
        IncompatibleParts: a loss that is not defined for these groups.
        ValueError: an argument is out of its range, or groups share state.
    """

    member_name = "group"
    groups: Sequence[BaseQuantizer]
    losses: Sequence[GroupLoss]

    def __init__(
        self,
        group: Sequence[Callable[[], BaseQuantizer]] | Callable[[], BaseQuantizer],
        num_groups: int | None = None,
        *,
        losses: Sequence[GroupLoss] = (),
        reduction: Reduction = MeanOverMembers(),  # noqa: B008 - stateless
        channel_dim: int = -1,
    ) -> None:
        groups = build_members(group, num_groups, kind="group", owner="GroupedQuantizer")
        super().__init__(groups, sum(member.dim for member in groups), channel_dim=channel_dim, reduction=reduction)
        check_groups(groups, losses)
        self.groups = nn.ModuleList(groups)  # type: ignore[assignment]  # it forgets its element type
        self.losses = nn.ModuleList(losses)  # type: ignore[assignment]

    @property
    def members(self) -> Iterable[BaseQuantizer]:
        """The groups, in the order of the channels."""
        return self.groups

    def quantize(self, latents: Tensor, valid: Tensor) -> Quantized:
        """Quantize each group's channels; see `BaseQuantizer`."""
        pairs = zip(self._with_channels(latents), self.counted(latents, valid), strict=True)
        members = [group.quantize(part, counts) for (group, part), counts in pairs]
        return Quantized(
            vectors=torch.cat([member.vectors for member in members], dim=-1),
            indices=self.join_levels([member.indices for member in members], valid.shape),
            valid=valid,
            members=members,
            source=self,
        )

    def penalize(self, quantized: Quantized) -> tuple[Tensor, dict[str, Tensor]]:
        """The groups' losses, and those between groups, over all vectors; see `BaseQuantizer`."""
        read = quantized.members if self.losses else []
        selections = [made.selection for made in read if made.selection is not None]
        counts = self.count(quantized)
        total, losses = super().penalize(quantized)
        for loss in self.losses if selections else ():
            losses[loss.name] = loss(selections) * (counts.used[-1] / counts.vectors)
            total = total + loss.weight * losses[loss.name]
        return total, losses

    def counted(self, latents: Tensor, valid: Tensor) -> Sequence[Tensor]:
        """Which of the `valid` vectors (B, *S) each group quantizes: all of them."""
        return [valid] * len(self.groups)

    def strip_training(self) -> None:
        """Drop the losses between groups too; see `BaseQuantizer`."""
        super().strip_training()
        if "losses" in self.recorded_arguments():
            self.losses = nn.ModuleList()  # type: ignore[assignment]
            self.record(losses=[])

    def assign(self, latents: Tensor, valid: Tensor) -> Tensor:
        """The groups' own; see `BaseQuantizer`."""
        parts = (group.assign(part, valid) for group, part in self._with_channels(latents))
        return self.join_levels(parts, valid.shape)

    def lookup(self, indices: Tensor) -> Tensor:
        """The groups' vectors side by side: (..., levels) int64 -> (..., dim), for any prefix of the levels."""
        parts = zip(self.groups, self.split_levels(indices), strict=False)
        found = torch.cat([group.lookup(levels) for group, levels in parts], dim=-1)
        return nn.functional.pad(found, (0, self.dim - found.shape[-1]))

    def chosen_vectors(self, quantized: Quantized) -> Tensor:
        """What the groups chose, side by side; see `BaseQuantizer`."""
        pairs = zip(self.groups, quantized.members, strict=True)
        return torch.cat([group.chosen_vectors(made) for group, made in pairs], dim=-1)

    @torch.no_grad()
    def initialize(self, latents: Iterable[Tensor], *, samples: int | None = None, seed: int = 0) -> None:
        """Initialize each group on its channels of the same vectors, group i with seed + i; by default on
        `enough_samples` for the largest codebook. See `BaseQuantizer`.
        """
        rows, batch = collect_vectors(self, latents, enough_samples(self.codebook_size, samples))
        samples = max(len(rows), 1) * distributed.world_size()  # of this rank all; it may have none
        with MemberWarnings("group") as warned:
            for number, (group, part) in enumerate(self._with_channels(rows)):
                with warned.by(number):
                    group.initialize(part.split(batch), samples=samples, seed=seed + number)

    def _with_channels(self, latents: Tensor) -> Iterator[tuple[BaseQuantizer, Tensor]]:
        """Each group and its channels of (..., dim)."""
        return zip(self.groups, latents.split([group.dim for group in self.groups], dim=-1), strict=True)

    def extra_repr(self) -> str:
        """Sizes and layout."""
        return f"codebook_sizes={self.codebook_sizes}, dim={self.dim}, channel_dim={self.channel_dim}"


class NestedGroupedQuantizer(DepthDropout, GroupedQuantizer):
    """Groups of which in training a sample may use the first n alone, so that these say most and decode without others.

    Groups that are left out have index -1, no loss and no statistics, and the decoder gets 0 in their channels. Outside
    of training all are used.

    Args:
        group: see `GroupedQuantizer`.
        num_groups: see `GroupedQuantizer`.
        lengths: the distribution of n; the default is that of the paper, for four groups.
        dropout: probability, per sample and training step, that n is drawn at all.
        losses: see `GroupedQuantizer`; of the vectors that use all groups, the others count as 0.
        reduction: see `GroupedQuantizer`.
        channel_dim: see `GroupedQuantizer`.
        seed: of the draws.

    Source: MGVQ, Jia et al. 2025 (arXiv:2507.07997), nested masking.
    Differs: drawn for each sample (in the released code for each batch).
    """

    def __init__(
        self,
        group: Sequence[Callable[[], BaseQuantizer]] | Callable[[], BaseQuantizer],
        num_groups: int | None = None,
        *,
        lengths: PrefixLengths = NestedLengths(),  # noqa: B008 - stateless
        dropout: float = 1.0,
        losses: Sequence[GroupLoss] = (),
        reduction: Reduction = MeanOverMembers(),  # noqa: B008 - stateless
        channel_dim: int = -1,
        seed: int = 0,
    ) -> None:
        named = {"losses": losses, "reduction": reduction, "channel_dim": channel_dim}
        super().__init__(group, num_groups, dropout=dropout, lengths=lengths, seed=seed, **named)
        lengths(torch.zeros(1), len(self.groups))  # those of another number of groups are refused here

    def counted(self, latents: Tensor, valid: Tensor) -> Sequence[Tensor]:
        """Which of the `valid` vectors (B, *S) each group quantizes: those of the samples that use it."""
        depths = self.sample_depths(self.number_forward(latents), valid.shape[0])
        numbers = range(len(self.groups))
        return [valid if depths is None else used(valid, depths, number) for number in numbers]

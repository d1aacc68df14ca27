"""Grouped (product) quantization: each group quantizes its own slice of the channels."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from vqkit import distributed
from vqkit.parts.compatibility import check_groups
from vqkit.quantizers.base import BaseQuantizer
from vqkit.quantizers.composite import build_members, joined_sizes, member_health, summed_losses
from vqkit.quantizers.disentanglement import GroupLoss, GroupSelection
from vqkit.quantizers.vector import VectorQuantizer


class GroupedQuantizer(BaseQuantizer):
    """Several quantizers side by side, each on consecutive channels: one token is one index per group.

    The first group takes the first `group.dim` channels, the second the next, and so on; `dim` is their sum. Groups may
    differ in method, dim and codebook size, and a group may itself be a composite, which contributes its levels to
    the last axis of the indices. K_1 ... K_G codes together name K_1 * ... * K_G vectors.

        >>> one = functools.partial(Quantizer, "vq", dim=16, codebook_size=1024)
        >>> two = functools.partial(FSQ, [8, 5, 5, 5])
        >>> GroupedQuantizer(one, 4)  # four groups of 16 channels
        >>> GroupedQuantizer([one, two])  # 16 channels, then 4

    FQGAN's factorized quantization is groups with `codebook_dim=8, normalize=True` and `losses=[Disentanglement()]`.
    The adapter of each branch belongs to the encoder, whose output channels are the branches' one after another.

    Unlike residual stages, a part of the groups decodes to nothing useful: `decode` wants all of them. An index of -1
    leaves the channels of its group at 0.

    Args:
        group: builds one group, and is called `num_groups` times so that no two share a codebook; or a list of one
            factory for each group.
        num_groups: at least 1; None with a list.
        losses: penalties between groups, added to the total with their weights; names must differ.
        channel_dim: see `BaseQuantizer`; the groups themselves have -1.

    Source: product quantization, Jégou, Douze, Schmid 2011; FQGAN, Bai et al. 2024 (arXiv 2411.16681).
    Differs: the groups' losses are averaged, so that weights do not depend on the number of groups; what decoding gives
    are the groups' own channels (a linear map of the concatenated codes is the decoder's first layer; with
    `codebook_dim` it is block-diagonal, one `project_out` for each group).

    Raises:
        IncompatibleParts: a loss that is not defined for these groups.
        ValueError: an argument is out of its range, or groups share state.
    """

    level_axis = True

    def __init__(
        self,
        group: Callable[[], BaseQuantizer] | Sequence[Callable[[], BaseQuantizer]],
        num_groups: int | None = None,
        *,
        losses: Sequence[GroupLoss] = (),
        channel_dim: int = -1,
    ) -> None:
        groups = build_members(group, num_groups, kind="group", owner="GroupedQuantizer")
        super().__init__(sum(member.dim for member in groups), channel_dim=channel_dim)
        check_groups(groups, losses)
        self.groups = nn.ModuleList(groups)
        self.losses = nn.ModuleList(losses)
        self.num_codebooks = len(joined_sizes(groups))
        self.codebook_size = max(joined_sizes(groups))

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """The size of each codebook, in the order of the last axis of the indices."""
        return joined_sizes(self._groups)

    def _forward(self, latents: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        slices = self._slices(latents)
        outputs = [group(part, valid) for group, part in zip(self._groups, slices, strict=True)]
        number = len(outputs)
        losses = {name: total / number for name, total in summed_losses([out.losses for out in outputs]).items()}
        total = torch.stack([output.loss for output in outputs]).sum() / number
        if self.losses:
            chosen = [
                GroupSelection(group, part.reshape(-1, group.dim), output.indices.flatten())
                for group, part, output in zip(self._groups, slices, outputs, strict=True)
                if isinstance(group, VectorQuantizer)
            ]
            between = {loss.name: loss(chosen) for loss in self._losses}
            total = total + sum(loss.weight * between[loss.name] for loss in self._losses)
            losses |= between
        quantized = torch.cat([output.quantized for output in outputs], dim=-1)
        return quantized, self._join([output.indices for output in outputs], valid), total, losses

    def _encode(self, latents: Tensor, valid: Tensor) -> Tensor:
        parts = zip(self._groups, self._slices(latents), strict=True)
        return self._join([group.encode(part, valid) for group, part in parts], valid)

    def _bottleneck(self, latents: Tensor) -> Tensor:
        parts = zip(self._groups, self._slices(latents), strict=True)
        return torch.cat([group.bottleneck(part) for group, part in parts], dim=-1)

    def lookup(self, indices: Tensor) -> Tensor:
        """The groups' vectors side by side: (..., num_codebooks) int64 -> (..., dim)."""
        if indices.shape[-1] != self.num_codebooks:
            raise ValueError(
                f"indices has shape {tuple(indices.shape)}: its last axis holds {self.num_codebooks} indices, one for "
                "each codebook of the groups; put -1 where a group shall give zeros"
            )
        levels = indices.split([group.num_codebooks for group in self._groups], dim=-1)
        parts = zip(self._groups, levels, strict=True)
        return torch.cat(
            [group.lookup(level if group.level_axis else level.squeeze(-1)) for group, level in parts], dim=-1
        )

    @torch.no_grad()
    def initialize(self, latents: Iterable[Tensor], *, samples: int | None = None, seed: int = 0) -> None:
        """Initialize each group on its channels of the same vectors. See `BaseQuantizer`.

        Args:
            latents: tensors in the layout of `forward`.
            samples: vectors over all ranks; None means 64 per code of the largest codebook, within 65,536 and 262,144,
                and at least 4 per code.
            seed: group i uses seed + i.
        """
        rows, batch = self._collect(latents, self._enough_samples(samples))
        samples = max(len(rows), 1) * distributed.world_size()  # of this rank all; it may have none
        for number, (group, part) in enumerate(zip(self._groups, self._slices(rows), strict=True)):
            group.initialize(part.split(batch), samples=samples, seed=seed + number)

    def step(self) -> None:
        """Fold the statistics of every group."""
        for group in self._groups:
            group.step()

    def _slices(self, rows: Tensor) -> tuple[Tensor, ...]:
        return rows.split([group.dim for group in self._groups], dim=-1)

    def _join(self, indices: Sequence[Tensor], valid: Tensor) -> Tensor:
        parts = zip(self._groups, indices, strict=True)
        return torch.cat([part.reshape(*valid.shape, group.num_codebooks) for group, part in parts], dim=-1)

    @property
    def _groups(self) -> Iterable[BaseQuantizer]:
        return self.groups  # type: ignore[return-value]  # nn.ModuleList forgets its element type

    @property
    def _losses(self) -> Iterable[GroupLoss]:
        return self.losses  # type: ignore[return-value]  # nn.ModuleList forgets its element type

    def _health(self) -> dict[str, float]:
        return super()._health() | member_health(self._groups, "group")

    def extra_repr(self) -> str:
        """Sizes and layout."""
        return f"codebook_sizes={self.codebook_sizes}, dim={self.dim}, channel_dim={self.channel_dim}"

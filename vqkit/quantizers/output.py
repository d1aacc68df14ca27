"""Results of quantizers: for users, and between a quantizer and the composite that it belongs to."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vqkit.parts.selection import Selection

if TYPE_CHECKING:
    from vqkit.quantizers.base import BaseQuantizer


@dataclass(frozen=True, eq=False)
class QuantizerOutput:
    """What a quantizer returns.

    Attributes:
        quantized: same shape and dtype as the input; 0 at positions that were left out.
        indices: int64, the input's shape without its channel axis; composites add a last axis of stages, groups or
            levels. -1 marks what was left out: masked positions, non-finite vectors, dropped stages.
        loss: scalar, the weighted sum of `losses`, and 0 where there are none. Its backward always runs in training; it
            does nothing where neither the input nor a code requires gradients.
        losses: name -> scalar, unweighted, for logging.
        nonfinite: int64 scalar, how many unmasked input vectors held a NaN or an infinity, or were so long that their
            squared length overflows, and were left out.
    """

    quantized: Tensor
    indices: Tensor
    loss: Tensor
    losses: dict[str, Tensor]
    nonfinite: Tensor


torch.export.register_dataclass(QuantizerOutput, serialized_type_name="vqkit.QuantizerOutput")


@dataclass(frozen=True, eq=False)
class Quantized:
    """The result of `BaseQuantizer.quantize`, for `forward` or for the composite that the quantizer belongs to.

    Attributes:
        vectors: (B, *S, dim) what is passed on, with graph; 0 where not valid.
        indices: (B, *S[, levels]) int64, -1 where not valid.
        valid: (B, *S) bool.
        selection: what was chosen for each of the N = B * prod(S) vectors; None of a composite, which has members, and
            without quantization.
        estimated: (N, D) what the estimator made of the selection, in the code space; None where `selection` is, and
            where a composite has let the vectors go.
        source: the quantizer that made it, unless nothing is to be added up for it over ranks.
        sums: of a composite, name -> what its `sums` gave, added up over ranks already.
        members: of a composite, what each member made, until `penalize` is done with it. Statistics count what is here.
        complete: whether the host knows that all are valid, so that nothing has to be masked.
    """

    vectors: Tensor
    indices: Tensor
    valid: Tensor
    selection: Selection | None = None
    estimated: Tensor | None = None
    source: "BaseQuantizer | None" = None
    sums: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    members: list["Quantized"] = field(default_factory=list)
    complete: bool = False

    def with_codes(self) -> Selection:
        """The selection, with the codes looked up where a composite let `selected` go; 0 where not valid."""
        selection = self.selection
        assert selection is not None  # a composite has members instead
        if self.estimated is not None or selection.codes is None:
            return selection
        selected = nn.functional.embedding(selection.indices.clamp(min=0), selection.codes)
        if not self.complete:  # a code that diverged is at no place where none was chosen
            selected = torch.where(selection.valid.unsqueeze(-1), selected, 0)
        return replace(selection, selected=selected)

    def leaves(self) -> Iterator["Quantized"]:
        """What was made by the quantizers inside that have no members themselves, in their order."""
        if not self.members:
            yield self
        for member in self.members:
            yield from member.leaves()

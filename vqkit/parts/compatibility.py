"""Which parts work together, in one quantizer and in composites: every rule, and the exception that reports them.

The rules read what parts declare and never ask which class a part is. What a single class demands is its method
`conflicts`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from vqkit.parts.codebooks import Codebook
from vqkit.parts.estimators import Estimator
from vqkit.parts.losses import Loss, Penalty
from vqkit.parts.maintenance import Maintenance
from vqkit.parts.selection import Search


class IncompatibleParts(ValueError):
    """Parts that cannot work together; the message lists every conflict, why, and how to mend it."""

    def __init__(self, conflicts: Sequence[str]) -> None:
        super().__init__("these parts cannot work together:\n" + "\n".join(f"- {conflict}" for conflict in conflicts))
        self.conflicts = tuple(conflicts)


class Member(Protocol):
    """The properties of a quantizer that the rules of composites read.

    Attributes:
        dim: of its input.
        codebook: its own; None where it stores none.
        estimator: its own; None where it has none.
        has_projection: whether trainable maps lead into its code space.
        has_mask_token: whether a trained vector stands where an index is -1.
    """

    dim: int
    codebook: Codebook | None
    estimator: Estimator | None
    has_projection: bool
    has_mask_token: bool


# ---------------------------------------------------------------------- the parts of one quantizer


def check_compatible(
    codebook: Codebook,
    search: Search,
    estimator: Estimator,
    losses: Sequence[Loss],
    maintenance: Sequence[Maintenance],
) -> None:
    """Check the parts of a quantizer with a codebook against each other.

    Raises:
        IncompatibleParts: with all conflicts at once.
    """
    _refuse(
        *_rows_must_be_writable(codebook, maintenance),
        *_policies_have_a_period(maintenance),
        *_codebook_and_gradients_agree(codebook, estimator, losses),
        *_search_and_estimator_agree(search, estimator),
        *_soft_choices_are_among_the_searched_codes(codebook, estimator, losses),
        *_queries_learn_by_a_soft_choice(codebook, estimator),
        *estimator.conflicts(codebook),
        *(conflict for loss in losses for conflict in loss.conflicts(codebook, estimator)),
        *_codes_have_enough_dimensions(codebook, estimator),
        *_names_differ(loss.name for loss in losses),
    )


def check_losses_without_codebook(quantizer: str, losses: Sequence[Loss]) -> None:
    """Check the losses of a quantizer that stores no codebook and goes straight through.

    Args:
        quantizer: its name, for messages.
        losses: its penalties.

    Raises:
        IncompatibleParts: with all conflicts at once.
    """
    _refuse(
        *(
            f"{_name(loss)} needs a stored codebook, and {quantizer} has none: leave it out, or use BitEntropy() for "
            "the entropy of bits"
            for loss in losses
            if loss.trains_codebook or loss.compares_with_all_codes
        ),
        *(conflict for loss in losses for conflict in loss.conflicts(None, None)),
        *_names_differ(loss.name for loss in losses),
    )


def check_names(names: Iterable[str]) -> None:
    """Check that losses can be told apart where they are reported.

    Raises:
        IncompatibleParts: several have one name.
    """
    _refuse(*_names_differ(names))


def _rows_must_be_writable(codebook: Codebook, maintenance: Sequence[Maintenance]) -> Iterator[str]:
    if codebook.rows == "writable":
        return
    derived = "are derived from shared weights and cannot be written one by one"
    for policy in maintenance:
        yield (
            f"{_name(policy)} rewrites codes, but the rows of {_name(codebook)} "
            f"{derived if codebook.rows == 'derived' else 'are frozen'}: leave the policy out (maintenance=[]) or use "
            "Codebook or EMACodebook"
        )


def _policies_have_a_period(maintenance: Sequence[Maintenance]) -> Iterator[str]:
    for policy in maintenance:
        if policy.every < 1:
            yield f"{_name(policy)} has every={policy.every}: expected a number of optimizer steps, at least 1"


def _codebook_and_gradients_agree(codebook: Codebook, estimator: Estimator, losses: Sequence[Loss]) -> Iterator[str]:
    book, training_losses = _name(codebook), [loss for loss in losses if loss.trains_codebook]
    senders = [_name(estimator)] * estimator.trains_codebook + [_name(loss) for loss in training_losses]
    if codebook.trained_by != "gradient":
        for sender in senders:
            yield (
                f"{sender} sends a gradient to the codebook, but {book} is trained by {codebook.trained_by}: "
                f"leave {sender} out, or use Codebook"
            )
    elif not senders:
        yield (
            f"{book} learns by gradient, but neither {_name(estimator)} nor a loss sends it one: add "
            "CodebookLoss() to losses, or use EMACodebook"
        )
    elif not (estimator.trains_codebook or any(loss.attracts_codes for loss in training_losses)):
        yield (
            f"{book} learns by gradient, but that of {' and '.join(senders)} pulls no code to a vector: add "
            "CodebookLoss() to losses, or use EMACodebook"
        )


def _search_and_estimator_agree(search: Search, estimator: Estimator) -> Iterator[str]:
    rule, metric = _name(estimator), estimator.required_metric
    if estimator.needs_sampled_choice and not search.uses_noise:
        yield (
            f"{rule} has the gradient of a code chosen at random, but {_name(search)} takes the best one: pass "
            "search=GumbelSearch(), or use IndexBackpropagation() with search=Search('dot')"
        )
    elif metric not in (None, search.metric):
        yield (
            f"{rule} differentiates a choice by {metric!r}, but {_name(search)} chooses by {search.metric!r}: pass "
            f"search=Search({metric!r}), or use StraightThrough()"
        )


def _soft_choices_are_among_the_searched_codes(
    codebook: Codebook, estimator: Estimator, losses: Sequence[Loss]
) -> Iterator[str]:
    soft = [estimator] if estimator.required_metric else []
    for part in (*soft, *(loss for loss in losses if loss.compares_with_all_codes)) if codebook.cascaded else ():
        yield (
            f"{_name(part)} compares the vectors with all codes, but {_name(codebook)} searches one table and "
            f"reads another: leave {_name(part)} out, or use Codebook"
        )


def _queries_learn_by_a_soft_choice(codebook: Codebook, estimator: Estimator) -> Iterator[str]:
    if codebook.attention and codebook.trained_by == "gradient" and estimator.required_metric is None:
        yield (
            f"{_name(codebook)} compares queries with keys, which only a soft choice trains, and {_name(estimator)} "
            "makes none: pass search=Search('dot') and estimator=IndexBackpropagation()"
        )


def _codes_have_enough_dimensions(codebook: Codebook, estimator: Estimator) -> Iterator[str]:
    if codebook.dim < estimator.min_dim:
        yield (
            f"{_name(estimator)} needs codes of at least {estimator.min_dim} dimensions, but this codebook "
            f"has {codebook.dim}: raise codebook_dim, or use StraightThrough()"
        )


def _names_differ(names: Iterable[str]) -> Iterator[str]:
    for name, count in Counter(names).items():
        if count > 1:
            yield f"{count} losses are called {name!r}, and results are reported by name: keep one of them"


# ---------------------------------------------------------------------- composites


def check_stages(dim: int, quantizers: Sequence[Member], estimator: Estimator | None) -> None:
    """Check the stages of a residual quantizer against each other and against an estimator over their sum.

    Args:
        dim: of every stage.
        quantizers: the stages, and the members of those that are composites.
        estimator: over the sum; None where each stage keeps its own.

    Raises:
        IncompatibleParts: with all conflicts at once.
    """
    _refuse(
        *_stages_leave_over_in_training_what_they_will_in_use(quantizers, estimator),
        *([] if estimator is None else _nothing_is_cut_off_by_an_estimator_over_the_sum(dim, quantizers, estimator)),
    )


def check_scales(losses: Sequence[Loss], estimator: Estimator | None, *, phi: bool) -> None:
    """Check the losses of the sum after each scale, and that something trains what smoothes the scales.

    Args:
        losses: of the sums.
        estimator: over the last sum; None where each scale keeps its own.
        phi: whether there is something to train.

    Raises:
        IncompatibleParts: with all conflicts at once.
    """
    decoder_trains = estimator is None or estimator.trains_codebook
    _refuse(
        *(
            f"{_name(loss)} is not defined for the sum after a scale, which is no code of one codebook: give it to the "
            "stages"
            for loss in losses
            if not loss.fits_sums
        ),
        *_names_differ(loss.name for loss in losses),
        *(
            f"nothing trains phi: {_name(estimator)} over the sum passes no gradient to it, and none of the losses "
            "does; add CodebookLoss() to losses, or leave phi out (num_phis=0)"
            for _ in range(phi and not decoder_trains and not any(loss.trains_codebook for loss in losses))
        ),
    )


def check_groups(groups: Sequence[Member], losses: Sequence[Penalty]) -> None:
    """Check the groups of a grouped quantizer against the losses between them.

    Raises:
        IncompatibleParts: with all conflicts at once.
    """
    _refuse(
        *(conflict for loss in losses for conflict in _groups_compare(groups, loss)),
        *_names_differ(loss.name for loss in losses),
    )


def _stages_leave_over_in_training_what_they_will_in_use(
    quantizers: Sequence[Member], estimator: Estimator | None
) -> Iterator[str]:
    far = {_name(own) for own in _estimators(quantizers) if not own.stays_close_to_code}
    if estimator is None and far:
        yield (
            f"the value of {' and '.join(sorted(far))} lies far from the code in training, so that later stages would "
            "be trained on noise: pass estimator=NSVQ() for one error of the sum, or give the stages DiVeQ() or "
            "GumbelSoftmax()"
        )
    if any(codebook.cascaded for codebook in _codebooks(quantizers)):
        yield (
            "what a cascaded codebook leaves over depends on its values, so that training these would change the "
            "indices of later stages: use one Quantizer, or GroupedQuantizer"
        )


def _nothing_is_cut_off_by_an_estimator_over_the_sum(
    dim: int, quantizers: Sequence[Member], estimator: Estimator
) -> Iterator[str]:
    name = _name(estimator)
    if any(quantizer.has_projection for quantizer in quantizers):
        yield (
            f"the stages project into a code space, and a {name} over the sum would cut these projections off from the "
            "decoder: pass estimator=None, so that each stage keeps its own estimator, or leave codebook_dim out"
        )
    if any(quantizer.has_mask_token for quantizer in quantizers) and not estimator.trains_codebook:
        yield (
            f"a mask token learns from the decoder alone, and a {name} over the sum would cut it off: pass "
            "estimator=None, or mask_token=False"
        )
    if any(own.trains_codebook for own in _estimators(quantizers)) and not estimator.trains_codebook:
        yield (
            f"the stages' estimator trains their codebooks through the decoder, and a {name} over the sum would "
            "replace it: pass estimator=None"
        )
    codebooks = {_name(codebook): codebook for codebook in _codebooks(quantizers)}.values()
    if estimator.required_metric is not None:
        yield (
            f"{name} differentiates the choice from one codebook, and a sum of several has none: pass estimator=None, "
            "and give it to the stages"
        )
    elif estimator.trains_codebook:
        for codebook in codebooks:
            if codebook.trained_by != "gradient":
                yield (
                    f"{name} sends a gradient to the codebooks, but {_name(codebook)} is trained by "
                    f"{codebook.trained_by}: use StraightThrough(), or stages with Codebook"
                )
    for codebook in codebooks:
        yield from estimator.conflicts(codebook)
    if dim < estimator.min_dim:
        yield f"{name} needs dim of at least {estimator.min_dim}, the stages have {dim}"


def _groups_compare(groups: Sequence[Member], loss: Penalty) -> Iterator[str]:
    name, codebooks = _name(loss), [group.codebook for group in groups]
    without = [number for number, codebook in enumerate(codebooks) if codebook is None]
    dims = [codebook.dim for codebook in codebooks if codebook is not None]
    if len(groups) < 2:
        yield f"{name} compares groups, and there is one: leave it out"
    elif without:
        yield (
            f"{name} compares the codes of the groups, but groups {without} have no codebook of their own (composites, "
            "fixed grids): leave it out, or make every group a Quantizer"
        )
    elif len(set(dims)) > 1:
        yield (
            f"{name} takes inner products of the groups' codes, which have {dims} dimensions: give all groups one "
            "codebook_dim"
        )
    for number, codebook in enumerate(codebooks):
        if codebook is not None and loss.trains_codebook and codebook.trained_by != "gradient":
            yield (
                f"{name} sends a gradient to the codebooks, but group {number} has {_name(codebook)}, which is trained "
                f"by {codebook.trained_by}: use Codebook, or PublishedDisentanglement(), which reaches the encoder "
                "instead"
            )


def _estimators(quantizers: Sequence[Member]) -> list[Estimator]:
    return [quantizer.estimator for quantizer in quantizers if quantizer.estimator is not None]


def _codebooks(quantizers: Sequence[Member]) -> list[Codebook]:
    return [quantizer.codebook for quantizer in quantizers if quantizer.codebook is not None]


def _refuse(*conflicts: str) -> None:
    if conflicts:
        raise IncompatibleParts(conflicts)


def _name(part: Any) -> str:
    return type(part).__name__

"""The five parts of a `Quantizer`, and which of them work together."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from vqkit.parts.codebooks import Codebook
from vqkit.parts.estimators import Estimator
from vqkit.parts.losses import Loss
from vqkit.parts.maintenance import Maintenance
from vqkit.parts.search import Search


class IncompatibleParts(ValueError):
    """Parts that cannot work together; the message lists every conflict, why, and how to mend it."""

    def __init__(self, conflicts: Sequence[str]) -> None:
        super().__init__("these parts cannot work together:\n" + "\n".join(f"- {conflict}" for conflict in conflicts))
        self.conflicts = tuple(conflicts)


class _Built(NamedTuple):
    """The parts of one quantizer; the rules below read what their classes declare, and never ask which class it is."""

    codebook: Codebook
    search: Search
    estimator: Estimator
    losses: Sequence[Loss]
    maintenance: Sequence[Maintenance]


def check_compatible(
    codebook: Codebook,
    search: Search,
    estimator: Estimator,
    losses: Sequence[Loss],
    maintenance: Sequence[Maintenance],
) -> None:
    """Compare what the parts declare about themselves.

    Raises:
        IncompatibleParts: with all conflicts at once.
    """
    parts = _Built(codebook, search, estimator, losses, maintenance)
    conflicts = [conflict for rule in _RULES for conflict in rule(parts)]
    if conflicts:
        raise IncompatibleParts(conflicts)


def _name(part: object) -> str:
    return type(part).__name__


def _rows_must_be_writable(parts: _Built) -> Iterator[str]:
    if parts.codebook.writable:
        return
    derived = "are derived from shared weights and cannot be written one by one"
    for policy in parts.maintenance:
        yield (
            f"{_name(policy)} rewrites codes, but the rows of {_name(parts.codebook)} "
            f"{derived if parts.codebook.derived else 'are frozen'}: leave the policy out (maintenance=[]) or use "
            "Codebook or EMACodebook"
        )


def _a_gradient_needs_a_sender_and_a_receiver(parts: _Built) -> Iterator[str]:
    book = _name(parts.codebook)
    losses = [loss for loss in parts.losses if loss.trains_codebook]
    senders = [_name(parts.estimator)] * parts.estimator.trains_codebook + [_name(loss) for loss in losses]
    if parts.codebook.trained_by == "gradient" and not senders:
        yield (
            f"{book} learns by gradient, but neither {_name(parts.estimator)} nor a loss sends it one: add "
            "CodebookLoss() to losses, or use EMACodebook"
        )
    fits_data = parts.estimator.trains_codebook or any(loss.fits_data for loss in losses)
    if parts.codebook.trained_by == "gradient" and senders and not fits_data:
        yield (
            f"{book} learns by gradient, but that of {' and '.join(senders)} draws no code to a vector: add "
            "CodebookLoss() to losses, or use EMACodebook"
        )
    if parts.codebook.trained_by != "gradient":
        for sender in senders:
            yield (
                f"{sender} sends a gradient to the codebook, but {book} is trained by {parts.codebook.trained_by}: "
                f"leave {sender} out, or use Codebook"
            )


def _the_estimator_must_fit_the_search(parts: _Built) -> Iterator[str]:
    rule, metric = _name(parts.estimator), parts.estimator.metric
    if parts.estimator.of_samples and not parts.search.samples:
        yield (
            f"{rule} has the gradient of a code drawn at random, but {_name(parts.search)} takes the best one: pass "
            "search=GumbelSearch(), or use IndexBackpropagation() with search=Search('dot')"
        )
    elif metric not in (None, parts.search.metric):
        yield (
            f"{rule} differentiates a choice by {metric!r}, but the search chooses by {parts.search.metric!r}: pass "
            f"search=Search({metric!r}), or use StraightThrough()"
        )


def _codes_that_the_task_alone_trains_must_not_be_searched(parts: _Built) -> Iterator[str]:
    if parts.estimator.of_values and not parts.codebook.cascaded:
        yield (
            f"{_name(parts.estimator)} trains codes for the task alone, which draws them away from the vectors, but "
            f"those of {_name(parts.codebook)} are searched too: use CascadedCodebook, or StraightThrough() with "
            "CodebookLoss()"
        )


def _a_soft_choice_must_be_among_what_is_searched(parts: _Built) -> Iterator[str]:
    if not parts.codebook.cascaded:
        return
    soft = [loss for loss in parts.losses if loss.compares_with_all]
    for part in (*([parts.estimator] if parts.estimator.metric else []), *soft):
        yield (
            f"{_name(part)} compares the vectors with all codes, but {_name(parts.codebook)} searches one table and "
            f"reads another: leave {_name(part)} out, or use Codebook"
        )


def _bits_are_no_codebook(parts: _Built) -> Iterator[str]:
    for loss in parts.losses:
        if loss.of_bits:
            yield (
                f"{_name(loss)} speaks of codes that are all patterns of bits, but {_name(parts.codebook)} stores "
                f"{parts.codebook.codebook_size} of them: use Entropy(), or LFQ or BSQ"
            )


def _a_loss_of_the_output_needs_an_estimator_for_it(parts: _Built) -> Iterator[str]:
    if parts.estimator.trains_codebook:
        return
    for loss in parts.losses:
        if loss.reads_quantized:
            yield (
                f"{_name(loss)} reads the quantized vectors, but {_name(parts.estimator)} passes no gradient through "
                "them to the codes, and that to the vectors cancels: leave it out, or use IndexBackpropagation()"
            )


def _codes_must_have_enough_dimensions(parts: _Built) -> Iterator[str]:
    if parts.codebook.dim < parts.estimator.min_dim:
        yield (
            f"{_name(parts.estimator)} needs codes of at least {parts.estimator.min_dim} dimensions, but this codebook "
            f"has {parts.codebook.dim}: raise codebook_dim, or use StraightThrough()"
        )


def _losses_must_differ_in_name(parts: _Built) -> Iterator[str]:
    for name, count in Counter(loss.name for loss in parts.losses).items():
        if count > 1:
            yield f"{count} losses are called {name!r}, and results are reported by name: keep one of them"


_RULES = (
    _rows_must_be_writable,
    _a_gradient_needs_a_sender_and_a_receiver,
    _the_estimator_must_fit_the_search,
    _codes_that_the_task_alone_trains_must_not_be_searched,
    _a_soft_choice_must_be_among_what_is_searched,
    _bits_are_no_codebook,
    _a_loss_of_the_output_needs_an_estimator_for_it,
    _codes_must_have_enough_dimensions,
    _losses_must_differ_in_name,
)

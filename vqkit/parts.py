"""The five parts of a `Quantizer`, and which of them work together."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from vqkit.codebooks import Codebook
from vqkit.estimators import Estimator
from vqkit.losses import Loss
from vqkit.maintenance import Maintenance
from vqkit.search import Search


@dataclass(frozen=True)
class Parts:
    """The answer of a published method to the five questions.

    Attributes:
        codebook: from (codebook_size, dim) to a codebook. A factory, because a codebook has state and is never shared.
        search: which code is chosen.
        estimator: how gradients pass.
        losses: what is penalised.
        maintenance: what happens to unused codes, in this order.
    """

    codebook: Callable[[int, int], Codebook]
    search: Search
    estimator: Estimator
    losses: Sequence[Loss] = field(default_factory=tuple)
    maintenance: Sequence[Maintenance] = field(default_factory=tuple)


class IncompatibleParts(ValueError):
    """Parts that cannot work together; the message lists every conflict, why, and how to mend it."""

    def __init__(self, conflicts: Sequence[str]) -> None:
        super().__init__("these parts cannot work together:\n" + "\n".join(f"- {conflict}" for conflict in conflicts))
        self.conflicts = tuple(conflicts)


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
    conflicts = []
    book, rule = type(codebook).__name__, type(estimator).__name__
    senders: list[Estimator | Loss] = [estimator, *losses]
    trainers = [type(part).__name__ for part in senders if part.trains_codebook]
    if not codebook.writable:
        conflicts += [
            f"{type(policy).__name__} rewrites codes, but the rows of {book} are derived from shared weights and "
            "cannot be written one by one: leave the policy out (maintenance=[]) or use Codebook or EMACodebook"
            for policy in maintenance
        ]
    if codebook.trained_by == "gradient" and not trainers:
        conflicts.append(
            f"{book} learns by gradient, but neither {rule} nor a loss sends it one: add CodebookLoss() to losses, or "
            "use EMACodebook"
        )
    if codebook.trained_by != "gradient":
        conflicts += [
            f"{name} sends a gradient to the codebook, but {book} is trained by {codebook.trained_by}: leave {name} "
            "out, or use Codebook"
            for name in trainers
        ]
    if estimator.metric not in (None, search.metric):
        conflicts.append(
            f"{rule} differentiates a choice by {estimator.metric!r}, but the search chooses by {search.metric!r}: "
            f"pass search=Search({estimator.metric!r}), or use StraightThrough()"
        )
    if not estimator.trains_codebook:
        conflicts += [
            f"{type(loss).__name__} reads the quantized vectors, but {rule} passes no gradient through them to the "
            "codes, and that to the vectors cancels: leave it out, or use IndexBackpropagation()"
            for loss in losses
            if loss.reads_quantized
        ]
    if codebook.dim < estimator.min_dim:
        conflicts.append(
            f"{rule} needs codes of at least {estimator.min_dim} dimensions, but this codebook has {codebook.dim}: "
            "raise codebook_dim, or use StraightThrough()"
        )
    conflicts += [
        f"{count} losses are called {name!r}, and results are reported by name: keep one of them"
        for name, count in Counter(loss.name for loss in losses).items()
        if count > 1
    ]
    if conflicts:
        raise IncompatibleParts(conflicts)

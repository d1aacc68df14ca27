"""Every quantizer that the contract holds for, with an input it takes. A new method appears here through `METHODS`.

`CASES` are always tested. `MATRIX` has every method with every estimator that fits it, and as residual stages and
groups; its tests carry the marker `long`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor

from tests.contract.two_scale import TwoScaleQuantizer
from tests.few import few
from vqkit import (
    BSQ,
    FSQ,
    LFQ,
    NSVQ,
    AttentionProjection,
    BaseQuantizer,
    BitFlips,
    CenteredFSQ,
    ClusterReinit,
    Codebook,
    CodebookLoss,
    Commitment,
    Contrastive,
    ConvProjection2d,
    Disentanglement,
    DistributionMatching,
    DiVeQ,
    EmbeddingStraightThrough,
    Estimator,
    FeatureSplitQuantizer,
    GroupedQuantizer,
    GumbelSearch,
    IncompatibleParts,
    IndexBackpropagation,
    LBGSplitting,
    MeanOverChoices,
    MixtureQuantizer,
    MSBFirstLFQ,
    MultiRateQuantizer,
    MultiScaleQuantizer,
    NestedGroupedQuantizer,
    NestedLengths,
    NonnegativePursuitQuantizer,
    Orthogonality,
    PowerOfTwoLengths,
    PrefixQuantizer,
    ProbabilisticAnchor,
    ProjectedQuantizer,
    PursuitQuantizer,
    Quantizer,
    RandomAnchor,
    Reflection,
    ReinMax,
    RelaxedGumbelSoftmax,
    ResidualQuantizer,
    RotationTrick,
    Search,
    SignedWeights,
    SplitQuantizer,
    StraightThrough,
    SumOverMembers,
    TextbookBSQ,
    TopKQuantizer,
    UnnormalizedStraightThrough,
)
from vqkit.methods import METHODS
from vqkit.methods.sinkhorn import SinkhornSearch

DIM = 8


@dataclass(frozen=True)
class Case:
    """A quantizer and the shape of its input.

    `spatial` ones need maps of the size `grid`, and look at a neighbourhood. One with `ranked_losses` has a term that
    ranks the vectors of a batch, as its docstring says: it depends on the size of the batch, and is not that of the
    joined batch over ranks. The learning rate is that of plain SGD.
    """

    build: Callable[..., BaseQuantizer]
    spatial: bool = False
    grid: tuple[int, ...] = (4, 4)
    ranked_losses: bool = False
    learning_rate: float = 0.5

    def example(self, batch: int = 3, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        """(B, T, D) rows, or (B, D, *grid) for a spatial quantizer."""
        generator = torch.Generator().manual_seed(seed)
        shape = (batch, DIM, *self.grid) if self.spatial else (batch, 10, DIM)
        return torch.randn(shape, generator=generator, dtype=dtype)

    def positions(self, x: Tensor) -> torch.Size:
        return x[:, 0].shape if self.spatial else x[..., 0].shape


def trains_codebook(quantizer: BaseQuantizer) -> bool:
    """Whether any code can move."""
    return any(isinstance(part, Codebook) and part.trained_by != "nothing" for part in quantizer.modules())


def draws_in_training(quantizer: BaseQuantizer) -> bool:
    """Whether the value in training is another one than in eval mode, by declaration."""
    noisy = any(isinstance(part, (Estimator, Search)) and part.uses_noise for part in quantizer.modules())
    noisy |= any(isinstance(part, Search) and part.sees_batch for part in quantizer.modules())
    return noisy or bool(dropout(quantizer)) or getattr(quantizer, "flips", None) is not None


def dropout(quantizer: BaseQuantizer) -> float:
    return max(getattr(part, "dropout", 0.0) for part in quantizer.modules() if isinstance(part, BaseQuantizer))


stage = partial(Quantizer, dim=DIM, codebook_size=16)
vq, ema, cvq, gumbel = (partial(stage, method, codebook_size=32) for method in ("vq", "ema", "cvq", "gumbel"))
multi_rate = partial(MultiRateQuantizer, strides=[4, 2, 1], channel_dim=1)
multi_scale = partial(MultiScaleQuantizer, scales=[1, [2, 3], 4], channel_dim=1)
unit_group = partial(stage, dim=4, codebook_dim=2, normalize=True)

CASES: dict[str, Case] = {
    **{name: Case(partial(Quantizer, name, dim=DIM, codebook_size=32)) for name in METHODS},
    "rotation": Case(partial(vq, estimator=RotationTrick())),
    "normalized": Case(partial(ema, normalize=True)),
    "factorized": Case(partial(Quantizer, "factorized", dim=DIM, codebook_size=32, codebook_dim=4)),
    "vit_vqgan": Case(partial(vq, normalize=True, estimator=UnnormalizedStraightThrough(), codebook_dim=4)),
    "reinmax": Case(partial(gumbel, estimator=ReinMax())),
    "sinkhorn": Case(partial(ema, search=SinkhornSearch())),
    "split": Case(partial(ema, maintenance=[LBGSplitting(every=2)])),
    "cvq_random": Case(partial(cvq, maintenance=[ClusterReinit(RandomAnchor())])),
    "cvq_probabilistic": Case(partial(cvq, maintenance=[ClusterReinit(ProbabilisticAnchor())])),
    "contrastive": Case(partial(cvq, losses=[Commitment(), CodebookLoss(), Contrastive(0.1)]), ranked_losses=True),
    "more_losses": Case(
        partial(vq, losses=[Commitment(), CodebookLoss(), Orthogonality(), DistributionMatching()]),
    ),
    "fsq": Case(partial(FSQ, [4, 3, 5, 2, 2, 2, 2, 2])),
    "fsq_projected": Case(partial(CenteredFSQ, [5, 5, 4], dim=DIM)),
    "lfq": Case(partial(LFQ, DIM)),
    "lfq_projected": Case(partial(MSBFirstLFQ, 40, dim=DIM)),
    "bsq": Case(partial(BSQ, DIM)),
    "bsq_wide": Case(partial(TextbookBSQ, 70, dim=DIM)),
    "top_k": Case(partial(TopKQuantizer, DIM, 32, 3)),
    "pursuit": Case(partial(PursuitQuantizer, DIM, 32, 3, levels=8)),
    "nonnegative_pursuit": Case(partial(NonnegativePursuitQuantizer, DIM, 32, 3, levels=40)),
    "residual": Case(partial(ResidualQuantizer, stage, 3)),
    "residual_dropout": Case(
        partial(
            ResidualQuantizer,
            partial(stage, "ema"),
            3,
            dropout=0.7,
            estimator=RotationTrick(),
            reduction=MeanOverChoices(),
        )
    ),
    "residual_nsvq": Case(partial(ResidualQuantizer, partial(stage, "nsvq"), 2, estimator=NSVQ(), dropout=0.3)),
    "residual_projected": Case(partial(ResidualQuantizer, partial(stage, codebook_dim=4), 2, estimator=None)),
    "residual_unequal": Case(
        partial(ResidualQuantizer, [partial(stage, "ema", codebook_size=32), partial(stage, "simvq")])
    ),
    "grouped": Case(
        partial(GroupedQuantizer, [partial(stage, "ema", dim=3), partial(stage, "ibq", dim=5, codebook_size=24)])
    ),
    "nested_groups": Case(
        partial(NestedGroupedQuantizer, unit_group, 2, lengths=NestedLengths([0.0, 0.6]), losses=[Disentanglement()])
    ),
    "fqgan": Case(partial(GroupedQuantizer, unit_group, 2, losses=[Disentanglement()], reduction=SumOverMembers())),
    "multi_scale": Case(partial(multi_scale, stage, level_sizes=[4, 8, 16]), spatial=True),
    "multi_scale_ema": Case(partial(multi_scale, partial(stage, "ema"), dropout=0.5), spatial=True),
    "multi_scale_own": Case(partial(multi_scale, [stage, partial(LFQ, DIM), partial(FSQ, [5] * DIM)]), spatial=True),
    "multi_scale_coda": Case(
        partial(multi_scale, partial(stage, "coda"), num_phis=0, losses=[], estimator=None, level_sizes=[4, 8, 16]),
        spatial=True,
        learning_rate=0.1,  # at the usual rate plain SGD explodes: nothing is detached between the scales
    ),
    "multi_scale_bits": Case(
        partial(multi_scale, partial(BSQ, 70, dim=DIM), num_phis=0, losses=[], estimator=None, flips=BitFlips()),
        spatial=True,
    ),
    "multi_scale_sequence": Case(
        partial(MultiScaleQuantizer, partial(stage, "ema"), [1, 3, 8], axes=1, dropout=0.5, channel_dim=1),
        spatial=True,
        grid=(16,),
    ),
    "mimi": Case(
        partial(
            SplitQuantizer,
            [
                partial(stage, "ema", dim=4),
                partial(ResidualQuantizer, partial(stage, "ema", dim=5), 2, dropout=0.5, reduction=MeanOverChoices()),
            ],
            dim=DIM,
            reduction=MeanOverChoices(),
        )
    ),
    "dualcodec": Case(
        partial(
            FeatureSplitQuantizer,
            [
                partial(stage, "factorized", dim=5, codebook_dim=2),
                partial(ResidualQuantizer, partial(stage, "factorized", dim=3, codebook_dim=2), 2, estimator=None),
            ],
            dropout=0.5,
        )
    ),
    "products_of_residuals": Case(
        partial(GroupedQuantizer, partial(ResidualQuantizer, partial(stage, "ema", dim=4), 2, dropout=0.5), 2)
    ),
    "residuals_of_products": Case(
        partial(ResidualQuantizer, partial(GroupedQuantizer, partial(stage, dim=4), 2), 2, dropout=0.5)
    ),
    "unitok": Case(
        partial(
            ProjectedQuantizer,
            partial(GroupedQuantizer, partial(stage, dim=2, normalize=True), 2),
            DIM,
            projection=AttentionProjection,
        )
    ),
    "prefix": Case(
        partial(
            PrefixQuantizer,
            partial(ResidualQuantizer, partial(stage, "ema"), 2),
            lengths=PowerOfTwoLengths(),
            dropout=0.7,
        )
    ),
    "mixture": Case(partial(MixtureQuantizer, partial(stage, "ema"), 2, dim=DIM)),
    "mixture_of_maps": Case(
        partial(
            MixtureQuantizer,
            [partial(stage, "ema", dim=6, codebook_size=24), partial(stage, dim=4)],
            dim=DIM,
            weights=SignedWeights(),
            weight_net=ConvProjection2d,
            project_out=ConvProjection2d,
            dropout=1.0,
            channel_dim=1,
        ),
        spatial=True,
    ),
    "multi_rate": Case(partial(multi_rate, partial(stage, "ema"), dropout=0.5), spatial=True, grid=(16,)),
    "snac": Case(
        partial(multi_rate, partial(stage, "factorized", codebook_dim=4), estimator=None), spatial=True, grid=(16,)
    ),
    "multi_rate_own": Case(
        partial(multi_rate, [stage, partial(stage, "nsvq", codebook_size=24), stage], estimator=NSVQ()),
        spatial=True,
        grid=(16,),
    ),
    "two_scale": Case(partial(TwoScaleQuantizer, DIM, 16, 4, 4), spatial=True),
}

ESTIMATORS = [
    StraightThrough(),
    UnnormalizedStraightThrough(),
    EmbeddingStraightThrough(),
    RotationTrick(),
    Reflection(),
    IndexBackpropagation(),
    NSVQ(),
    DiVeQ(),
    ReinMax(),
    RelaxedGumbelSoftmax(),
]


def _matrix() -> Iterator[tuple[str, Case]]:
    for name in METHODS:
        for estimator in ESTIMATORS:
            metric = estimator.required_metric
            search = GumbelSearch() if estimator.needs_sampled_choice else Search(metric) if metric else None
            build = partial(stage, name, codebook_size=32, estimator=estimator, search=search)
            # The decoder's gradient through a bridge of width 256 makes plain SGD explode at the usual rate.
            rate = 1e-4 if name == "fvq" and estimator.trains_codebook else 0.5
            yield f"{name}-{type(estimator).__name__}", Case(build, learning_rate=rate)
        member = partial(stage, name)
        over_the_sum = NSVQ() if name == "nsvq" else None
        yield f"residual-{name}", Case(partial(ResidualQuantizer, member, 2, estimator=over_the_sum))
        yield f"grouped-{name}", Case(partial(GroupedQuantizer, partial(member, dim=DIM // 2), 2))


def _fits(case: Case) -> bool:
    try:
        case.build()
    except IncompatibleParts:
        return False
    return True


MATRIX: dict[str, Case] = {name: case for name, case in _matrix() if _fits(case)}
ALL = CASES | MATRIX


def each(cases: dict[str, Case], matrix: dict[str, Case], *names: str) -> pytest.MarkDecorator:
    """Parametrize a test with `case`: those named, or all, the others behind `slow`, the matrix behind `long`."""
    marked = [pytest.param(case, id=name, marks=pytest.mark.long) for name, case in matrix.items()]
    return pytest.mark.parametrize("case", [*few(cases, *(names or cases)), *marked])


def name_of(case: Case) -> str:
    """For processes that build their own."""
    return next(name for name, other in ALL.items() if other is case)


def _pointwise(cases: dict[str, Case]) -> dict[str, Case]:
    return {name: case for name, case in cases.items() if not case.spatial}


SLOW = {
    "top_k",
    "nonnegative_pursuit",
    "multi_scale_own",
    "multi_scale_bits",
    "multi_scale_coda",
    "multi_rate_own",
    "mixture_of_maps",
    "multi_scale_sequence",
    "snac",
    "residuals_of_products",
    "dualcodec",
    "multi_scale_ema",
    "nested_groups",
    "residual_projected",
    "residual_unequal",
    "fqgan",
    "mimi",
    "residual_nsvq",
    "more_losses",
    "cvq_random",
    "cvq_probabilistic",
}
"""Others stand for what these have in common with them."""

every_case = each(CASES, MATRIX, *(CASES.keys() - SLOW))
pointwise = each(_pointwise(CASES), _pointwise(MATRIX))

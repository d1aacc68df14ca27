"""Every combination that is refused at construction: the message says what does not fit, why, and how to mend it."""

import inspect
import re
from collections.abc import Callable
from functools import partial

import pytest
import torch

import vqkit
from tests.refusals import refused
from vqkit import (
    FSQ,
    LFQ,
    AudioTokenizer,
    BaseQuantizer,
    BitEntropy,
    BridgedCodebook,
    CenteredFSQ,
    ClusterReinit,
    Codebook,
    CodebookLoss,
    CodebookUsage,
    Commitment,
    Contrastive,
    Disentanglement,
    DistributionMatching,
    DiVeQ,
    DoubleQuantization,
    EMACodebook,
    EmbeddingStraightThrough,
    Entropy,
    Estimator,
    FeatureCodebook,
    GroupedQuantizer,
    GumbelSoftmax,
    IncompatibleParts,
    IndexBackpropagation,
    LBGSplitting,
    NestedLengths,
    Orthogonality,
    PrefixQuantizer,
    ProbabilisticAnchor,
    ProjectedCodebook,
    PublishedDisentanglement,
    Quantizer,
    RandomRestart,
    Reflection,
    ReinMax,
    ResidualQuantizer,
    RotationTrick,
    Search,
    Selection,
    StraightThrough,
    SumOverMembers,
    Tokenizer,
    UniformLengths,
    UniformPrior,
    UnscaledRotationTrick,
)

SIZES = {"dim": 4, "codebook_size": 8}
METHODS = ("vq", "ema", "simvq", "ibq", "coda", "gumbel", "nsvq", "cascaded", "seeded")
vq, ema, simvq, ibq, coda, gumbel, nsvq, cascaded, seeded = (partial(Quantizer, method, **SIZES) for method in METHODS)


class TrainsCodes(Estimator):
    """Any estimator through which the decoder trains the codebook."""

    trains_codebook = True

    def forward(self, selection: Selection) -> torch.Tensor:
        return selection.selected


class UntrainedCodebook(Codebook):
    """Codes that nothing trains."""

    trained_by = "nothing"


projected = partial(vq, codebook_dim=2)
SHARED = vq()

INCOMPATIBLE: dict[str, tuple[Callable[[], object], str]] = {
    "restarts of derived rows": (
        lambda: simvq(maintenance=[RandomRestart()]),
        "RandomRestart rewrites codes ... ProjectedCodebook are derived ... maintenance=[] ... "
        "use Codebook or EMACodebook",
    ),
    "nothing trains the codes": (
        lambda: vq(losses=[Commitment()]),
        "Codebook learns by gradient ... neither StraightThrough nor a loss ... add CodebookLoss() ... use EMACodebook",
    ),
    "a gradient for running means": (
        lambda: ema(losses=[Commitment(), CodebookLoss()]),
        "CodebookLoss sends a gradient ... EMACodebook is trained by statistics ... "
        "leave CodebookLoss out ... use Codebook",
    ),
    "index backpropagation of another choice": (
        lambda: vq(estimator=IndexBackpropagation()),
        "IndexBackpropagation differentiates a choice by 'dot' ... Search chooses by 'euclidean' ... Search('dot')",
    ),
    "index backpropagation over a sum of stages": (
        lambda: ResidualQuantizer(vq, 2, estimator=IndexBackpropagation()),
        "IndexBackpropagation differentiates the choice from one codebook ... a sum of several has none ... "
        "estimator=None",
    ),
    "a loss of the estimator's output without an estimator for it": (
        lambda: ema(losses=[DoubleQuantization()]),
        "DoubleQuantization reads the quantized vectors ... StraightThrough passes no gradient ... leave it out",
    ),
    "an estimator that trains running means": (
        lambda: ema(estimator=TrainsCodes()),
        "TrainsCodes sends a gradient ... EMACodebook is trained by statistics ... leave TrainsCodes out",
    ),
    "a gradient for frozen codes": (
        lambda: vq(codebook=UntrainedCodebook),
        "CodebookLoss sends a gradient ... UntrainedCodebook is trained by nothing ... leave CodebookLoss out",
    ),
    "codes that only repel each other": (
        lambda: vq(losses=[Commitment(), Orthogonality()]),
        "Codebook learns by gradient ... that of Orthogonality pulls no code to a vector ... add CodebookLoss()",
    ),
    "a prior that is all that trains the codes": (
        lambda: gumbel(estimator=StraightThrough()),
        "NormalCodebook learns by gradient ... that of UniformPrior pulls no code to a vector ... add CodebookLoss()",
    ),
    "a sampled code's gradient for the best code": (
        lambda: ibq(estimator=ReinMax(), losses=[]),
        "ReinMax has the gradient of a code chosen at random ... Search takes the best one ... search=GumbelSearch()",
    ),
    "Gumbel-softmax without its search": (
        lambda: gumbel(search=Search("dot")),
        "GumbelSoftmax has the gradient of a code chosen at random ... Search takes the best one",
    ),
    "queries that nothing trains": (
        lambda: coda(estimator=StraightThrough(), losses=[Commitment(), CodebookLoss()]),
        "AttentionCodebook compares queries with keys ... StraightThrough makes none ... "
        "search=Search('dot') and estimator=IndexBackpropagation()",
    ),
    "a soft choice among codes that are not searched": (
        lambda: cascaded(search=Search("dot"), estimator=IndexBackpropagation()),
        "IndexBackpropagation compares the vectors with all codes ... "
        "CascadedCodebook searches one table and reads another ... leave IndexBackpropagation out",
    ),
    "an entropy of codes that are not searched": (
        lambda: cascaded(losses=[Entropy()]),
        "Entropy compares the vectors with all codes ... CascadedCodebook searches one table ... leave Entropy out",
    ),
    "restarts of frozen rows": (
        lambda: cascaded(maintenance=[RandomRestart()]),
        "RandomRestart rewrites codes ... the rows of CascadedCodebook are frozen ... maintenance=[]",
    ),
    "splits of frozen rows": (
        lambda: seeded(maintenance=[LBGSplitting()]),
        "LBGSplitting rewrites codes ... the rows of SeededCodebook are frozen ... maintenance=[]",
    ),
    "a reflection in one dimension": (
        lambda: Quantizer("vq", dim=1, codebook_size=8, estimator=Reflection()),
        "Reflection needs codes of at least 2 dimensions ... this codebook has 1",
    ),
    "a codebook's loss without a codebook": (
        lambda: LFQ(4, losses=[CodebookLoss()]),
        "CodebookLoss needs a stored codebook, and LFQ has none ... leave it out ... BitEntropy()",
    ),
    "an entropy of bits for a codebook": (
        lambda: vq(losses=[CodebookLoss(), BitEntropy()]),
        "BitEntropy is defined for all patterns of bits as codes ... Codebook stores 8 of them ... use Entropy()",
    ),
    "the estimator's output of a lookup-free quantizer": (
        lambda: LFQ(4, losses=[DoubleQuantization()]),
        "DoubleQuantization reads the quantized vectors ... nothing of their gradient reaches a code ... leave it out",
    ),
    "one group to disentangle": (
        lambda: GroupedQuantizer(vq, 1, losses=[Disentanglement()]),
        "Disentanglement compares groups, and there is one ... leave it out",
    ),
    "running means to disentangle": (
        lambda: GroupedQuantizer([vq, ema], losses=[Disentanglement()]),
        "group 1 has EMACodebook ... trained by statistics ... PublishedDisentanglement()",
    ),
    "noise over a sum of running means": (
        lambda: ResidualQuantizer(ema, 2, estimator=DiVeQ()),
        "DiVeQ sends a gradient to the codebooks ... EMACodebook is trained by statistics ... StraightThrough()",
    ),
    "stages that leave noise over": (
        lambda: ResidualQuantizer(nsvq, 2, estimator=None),
        "NSVQ lies far from the code ... trained on noise ... pass estimator=NSVQ() ... DiVeQ()",
    ),
    "stages of frozen indices": (
        lambda: ResidualQuantizer(cascaded, 2, estimator=None),
        "what a cascaded codebook leaves over depends on its values ... GroupedQuantizer",
    ),
    "the task's gradient for codes that are searched": (
        lambda: vq(estimator=EmbeddingStraightThrough()),
        "EmbeddingStraightThrough trains codes for the task ... Codebook are searched too ... use CascadedCodebook",
    ),
    "an entropy that is all that trains the codes": (
        lambda: vq(losses=[Entropy()]),
        "that of Entropy pulls no code to a vector ... add CodebookLoss()",
    ),
    "a distribution of codes that are not searched": (
        lambda: cascaded(losses=[DistributionMatching()]),
        "DistributionMatching compares the vectors with all codes ... CascadedCodebook searches one table",
    ),
    "codes of groups that differ in dimension": (
        lambda: GroupedQuantizer([vq, partial(Quantizer, "vq", dim=2, codebook_size=8)], losses=[Disentanglement()]),
        "Disentanglement takes inner products ... [4, 2] dimensions ... one codebook_dim",
    ),
    "codes of a group without a codebook": (
        lambda: GroupedQuantizer(
            [vq, partial(FSQ, [3, 3, 3, 3]), partial(ResidualQuantizer, vq, 2)], losses=[PublishedDisentanglement()]
        ),
        "PublishedDisentanglement compares the codes ... groups [1, 2] have no codebook ... every group a Quantizer",
    ),
    "a rotation in one dimension": (
        lambda: Quantizer("vq", dim=1, codebook_size=8, estimator=RotationTrick()),
        "RotationTrick needs codes of at least 2 dimensions ... this codebook has 1 ... "
        "raise codebook_dim ... StraightThrough()",
    ),
    "two losses of one name": (
        lambda: vq(losses=[Commitment(0.1), Commitment(0.2), CodebookLoss()]),
        "2 losses are called 'commitment' ... reported by name ... keep one of them",
    ),
    "two losses between groups of one name": (
        lambda: GroupedQuantizer(vq, 2, losses=[Disentanglement(), PublishedDisentanglement()]),
        "2 losses are called 'disentanglement' ... reported by name ... keep one of them",
    ),
    "two losses of bits of one name": (
        lambda: LFQ(4, losses=[Commitment(), BitEntropy(), BitEntropy()]),
        "2 losses are called 'entropy' ... reported by name ... keep one of them",
    ),
    "the task's gradient for the codes of stages": (
        lambda: ResidualQuantizer(vq, 2, estimator=EmbeddingStraightThrough()),
        "EmbeddingStraightThrough trains codes for the task alone ... those of Codebook are searched too",
    ),
    "an estimator over projected stages": (
        lambda: ResidualQuantizer(projected, 2),
        "the stages project into a code space ... a StraightThrough over the sum ... pass estimator=None ... "
        "leave codebook_dim out",
    ),
    "an estimator over projected FSQ stages": (
        lambda: ResidualQuantizer(lambda: FSQ([5, 5], dim=4), 2, estimator=RotationTrick()),
        "the stages project into a code space ... a RotationTrick over the sum",
    ),
    "an estimator over stages with a mask token": (
        lambda: ResidualQuantizer(lambda: PrefixQuantizer(vq, mask_token=True), 2),
        "a mask token learns ... a StraightThrough over the sum ... pass estimator=None",
    ),
    "an estimator over stages that train their codes": (
        lambda: ResidualQuantizer(lambda: vq(estimator=TrainsCodes()), 2),
        "trains their codebooks through the decoder ... a StraightThrough over the sum ... pass estimator=None",
    ),
    "a rotation of one-dimensional sums": (
        lambda: ResidualQuantizer(lambda: Quantizer("vq", dim=1, codebook_size=8), 2, estimator=RotationTrick()),
        "RotationTrick needs dim of at least 2 ... the stages have 1",
    ),
}


def pattern(words: str) -> str:
    """A regular expression: ` ... ` stands for anything."""
    return "(?s)" + ".*".join(map(re.escape, words.split(" ... ")))


@pytest.mark.parametrize(("build", "words"), INCOMPATIBLE.values(), ids=INCOMPATIBLE)
def test_incompatible_parts_are_refused(build: Callable[[], object], words: str) -> None:
    with pytest.raises(IncompatibleParts, match=pattern(f"these parts cannot work together ... {words}")) as refusal:
        build()
    assert len(refusal.value.conflicts) == 1


def test_incompatible_parts_are_value_errors() -> None:
    assert issubclass(IncompatibleParts, ValueError)


def test_all_conflicts_are_reported_at_once() -> None:
    with pytest.raises(IncompatibleParts) as refusal:
        Quantizer(
            "simvq",
            dim=1,
            codebook_size=8,
            estimator=RotationTrick(),
            losses=[Commitment(), Commitment()],
            maintenance=[RandomRestart(), RandomRestart(0.5)],
        )
    conflicts = refusal.value.conflicts
    assert len(conflicts) == 5 and all(f"- {conflict}" in str(refusal.value) for conflict in conflicts)
    for expected in ("RandomRestart rewrites", "learns by gradient", "at least 2 dimensions", "2 losses are called"):
        assert any(expected in conflict for conflict in conflicts)
    with pytest.raises(IncompatibleParts) as refusal:
        ema(losses=[CodebookLoss(), CodebookLoss()], estimator=TrainsCodes())
    assert len(refusal.value.conflicts) == 4
    with pytest.raises(IncompatibleParts) as refusal:
        ResidualQuantizer(
            lambda: Quantizer("vq", dim=1, codebook_size=8, codebook_dim=3, estimator=TrainsCodes()),
            2,
            estimator=RotationTrick(),
        )
    assert len(refusal.value.conflicts) == 3


ALLOWED: dict[str, Callable[[], object]] = {
    "rotation with any codebook": lambda: [build(estimator=RotationTrick()) for build in (vq, ema, simvq)],
    "an estimator in place of a loss": lambda: vq(estimator=TrainsCodes(), losses=[Commitment()]),
    "running means in plain vq": lambda: vq(codebook=EMACodebook, losses=[Commitment()]),
    "plain codes in simvq": lambda: simvq(codebook=Codebook, maintenance=[RandomRestart()]),
    "a projector in plain vq": lambda: vq(codebook=ProjectedCodebook),
    "several policies": lambda: ema(maintenance=[RandomRestart(), RandomRestart(0.2, every=50)]),
    "no loss at all": lambda: ema(losses=[], maintenance=[]),
    "projected stages that keep their estimators": lambda: ResidualQuantizer(projected, 2, estimator=None),
    "stages that train their codes": lambda: ResidualQuantizer(lambda: vq(estimator=TrainsCodes()), 2, estimator=None),
    "derived stages": lambda: ResidualQuantizer(simvq, 2, estimator=RotationTrick()),
}


@pytest.mark.parametrize("build", ALLOWED.values(), ids=ALLOWED)
def test_what_can_work_together_is_not_refused(build: Callable[[], object]) -> None:
    assert build()


def stages_of(*builders: Callable[[], BaseQuantizer]) -> Callable[[], BaseQuantizer]:
    remaining = iter(builders)
    return lambda: next(remaining)()


WRONG_ARGUMENTS: dict[str, tuple[Callable[[], object], str]] = {
    "method": (lambda: Quantizer("emma", **SIZES), "method='emma' ... 'vq', 'ema', 'simvq' ... did you mean 'ema'?"),
    "dim": (lambda: Quantizer("vq", dim=0, codebook_size=8), "dim=0 ... at least 1"),
    "codebook_size": (lambda: Quantizer("vq", dim=4, codebook_size=0), "codebook_size=0 ... at least 1"),
    "codebook_dim": (lambda: vq(codebook_dim=0), "codebook_dim=0 ... at least 1 ... None for dim=4"),
    "channel_dim": (lambda: vq(channel_dim=0), "channel_dim=0 ... batch axis ... use -1 ... or 1"),
    "codebook of another size": (
        lambda: vq(codebook=lambda size, dim: Codebook(2 * size, dim)),
        "built 16 codes of dimension 4 ... codebook_size=8 of dimension 4 ... the sizes that it is given",
    ),
    "codebook of another dimension": (
        lambda: vq(codebook_dim=2, codebook=lambda size, dim: Codebook(size, 4)),
        "built 8 codes of dimension 4 ... of dimension 2",
    ),
    "usage_decay": (lambda: EMACodebook(8, 4, usage_decay=1.0), "usage_decay=1.0 ... [0, 1)"),
    "metric": (lambda: Search("l2"), "metric='l2' ... 'euclidean', 'dot' or 'cosine'"),
    "no angle": (lambda: RotationTrick(0.0), "largest_angle=0.0 ... degrees in (0, 180] ... 180 for the paper's rule"),
    "an angle beyond the opposite": (lambda: UnscaledRotationTrick(181.0), "largest_angle=181.0 ... (0, 180]"),
    "weight": (lambda: Commitment(-0.25), "Commitment weight=-0.25 ... at least 0"),
    "weight not a number": (lambda: CodebookLoss(float("nan")), "CodebookLoss weight=nan ... a number of at least 0"),
    "softmax without a temperature": (lambda: IndexBackpropagation(0.0), "temperature=0.0 ... positive ... 1.0"),
    "entropy without a temperature": (lambda: Entropy(temperature=-1.0), "temperature=-1.0 ... positive ... 0.01"),
    "negative diversity": (lambda: Entropy(diversity=-1.0), "diversity=-1.0 ... at least 0"),
    "entropy by angle": (lambda: Entropy(metric="cosine"), "metric='cosine' ... 'dot' or 'euclidean'"),
    "patches that do not fit": (
        lambda: Quantizer("fvq", dim=4, codebook_size=24),
        "codebook_size=24 ... multiple of patch_size^2 = 16 ... 16 or 32 is nearest",
    ),
    "heads that do not divide": (lambda: BridgedCodebook(16, 4, heads=3), "heads=3 ... divisor of width=256"),
    "features of an unnamed size": (
        lambda: FeatureCodebook(8, 4, base_path="features.safetensors"),
        "base_dim=None ... base_path='features.safetensors' ... the size of the features",
    ),
    "a size for features that are not given": (
        lambda: FeatureCodebook(8, 4, base_dim=768),
        "base_dim=768 without base_path ... leave base_dim out ... name a file",
    ),
    "gumbel without a temperature": (lambda: GumbelSoftmax(0.0), "temperature=0.0 ... positive"),
    "negative variance": (lambda: DiVeQ(-1e-3), "variance=-0.001 ... at least 0 ... 1e-3 in the paper"),
    "contrast without a temperature": (lambda: Contrastive(temperature=0.0), "temperature=0.0 ... positive"),
    "anchors by another metric": (lambda: ProbabilisticAnchor("l2"), "metric='l2' ... 'euclidean', 'dot' or 'cosine'"),
    "anchors never": (lambda: ClusterReinit(every=0), "every=0 ... at least 1"),
    "a split of every code": (lambda: LBGSplitting(1.0), "threshold=1.0 ... [0, 1)"),
    "no step of a split": (lambda: LBGSplitting(step=0.0), "step=0.0 ... above 0"),
    "too many levels for the common rule": (lambda: CenteredFSQ([1001]), "levels=[1001] ... at most 1000 each"),
    "groups with a layout": (
        lambda: GroupedQuantizer(partial(vq, channel_dim=1), 2),
        "another channel_dim than -1 ... give channel_dim to GroupedQuantizer",
    ),
    "bits beyond an index": (lambda: LFQ(63), "bits=63 ... at most 62 ... GroupedQuantizer of several LFQ ... BSQ"),
    "no bits": (lambda: LFQ(0), "bits=0 ... in 1"),
    "weight of a prior": (lambda: UniformPrior(-1.0), "UniformPrior weight=-1.0 ... at least 0"),
    "no group at all": (lambda: GroupedQuantizer(vq, 0), "num_groups=0 ... at least 1"),
    "one group twice": (lambda: GroupedQuantizer(lambda: SHARED, 2), "group gave the same quantizer again"),
    "one stage twice": (lambda: ResidualQuantizer(lambda: SHARED, 2), "stage gave the same quantizer again"),
    "num_groups": (lambda: GroupedQuantizer(vq), "num_groups=None ... at least 1"),
    "groups counted twice": (lambda: GroupedQuantizer([vq, ema], 3), "num_groups=3 ... expected None ... lists 2"),
    "no groups": (lambda: GroupedQuantizer([]), "group=[] ... at least 1"),
    "an infinite weight": (lambda: Commitment(float("inf")), "Commitment weight=inf ... at least 0"),
    "an infinite temperature": (lambda: IndexBackpropagation(float("inf")), "temperature=inf ... positive"),
    "a loss that is no list": (lambda: vq(losses=Commitment()), "losses=Commitment( ... expected a list"),
    "a policy that is no list": (lambda: vq(maintenance=RandomRestart()), "maintenance=RandomRestart( ... a list"),
    "half a level": (lambda: FSQ([8.5, 5]), "levels=[8.5, 5] ... at least 2 levels"),
    "half a bit in a group": (lambda: BitEntropy(group_bits=9.5), "group_bits=9.5 ... expected 1 to 20"),
    "no channels of a grid": (lambda: FSQ([5, 5], dim=0), "dim=0 ... at least 1"),
    "threshold as a count": (lambda: RandomRestart(2), "threshold=2 ... fraction of uniform usage ... [0, 1) ... 0.1"),
    "every": (lambda: RandomRestart(every=0), "every=0 ... at least 1"),
    "limit": (lambda: RandomRestart(limit=0), "limit=0 ... at least 1"),
    "no levels": (lambda: FSQ([]), "at least one dimension"),
    "levels": (lambda: FSQ([8, 1]), "levels=[8, 1] ... at least 2 levels ... [8, 5, 5, 5]"),
    "too many levels": (lambda: FSQ([2] * 63), "do not fit an int64 ... fewer levels"),
    "num_stages": (lambda: ResidualQuantizer(vq, 0), "num_stages=0 ... at least 1"),
    "dropout": (lambda: ResidualQuantizer(vq, 2, dropout=1.5), "dropout=1.5 ... [0, 1]"),
    "a class of lengths": (lambda: ResidualQuantizer(vq, 2, lengths=UniformLengths), "lengths= ... UniformLengths()"),
    "half a length": (lambda: UniformLengths(1.5), "least=1.5 ... whole number"),
    "no probabilities": (lambda: NestedLengths([]), "probabilities=[] ... at least one"),
    "a class of reduction": (
        lambda: GroupedQuantizer(vq, 2, reduction=SumOverMembers),
        "reduction= ... SumOverMembers()",
    ),
    "stages of two sizes": (
        lambda: ResidualQuantizer(stages_of(vq, partial(Quantizer, "vq", dim=6, codebook_size=8)), 2),
        "dim [4, 6] ... one size ... summed",
    ),
    "stages with a layout": (
        lambda: ResidualQuantizer(partial(vq, channel_dim=1), 2),
        "another channel_dim than -1 ... give channel_dim to ResidualQuantizer",
    ),
    "usage of no codes": (lambda: CodebookUsage(0), "codebook_size=0 ... at least 1"),
}


@pytest.mark.parametrize(("build", "words"), WRONG_ARGUMENTS.values(), ids=WRONG_ARGUMENTS)
def test_wrong_arguments_are_refused_at_construction(build: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=pattern(words)):
        build()


PUBLIC_CLASSES = {
    name: value
    for name, value in vars(vqkit).items()
    if inspect.isclass(value)
    and value.__module__.startswith("vqkit")
    and value.__init__ not in (torch.nn.Module.__init__, object.__init__)
}


@pytest.mark.parametrize("name", PUBLIC_CLASSES)
def test_no_public_constructor_swallows_arguments(name: str) -> None:
    kinds = {parameter.kind for parameter in inspect.signature(PUBLIC_CLASSES[name].__init__).parameters.values()}
    assert inspect.Parameter.VAR_KEYWORD not in kinds


test_a_typo_or_a_positional_option_is_a_type_error = refused(
    (lambda: vq(comitment_weight=1.0), "losses=[Commitment(weight=1.0)]"),
    (lambda: ema(decay=0.8), "codebook=functools.partial(EMACodebook, usage_decay=0.8)"),
    (lambda: Quantizer("ema", 8, 16, decay=0.8), "codebook=functools.partial(EMACodebook, usage_decay=0.8)"),
    (lambda: ema(threshold=0.1), "maintenance=[RandomRestart(threshold=0.1)]"),
    (lambda: gumbel(temperature=0.5), "estimator=GumbelSoftmax(temperature=0.5)"),
    (lambda: Quantizer(method="ema", seed=3, **SIZES), "codebook=functools.partial(EMACodebook, seed=3)"),
    (lambda: vq(kmeans_init=True), "no argument 'kmeans_init': it takes method, dim, codebook_size, "),
    (lambda: vq(normalise=True), "Quantizer has no argument 'normalise': did you mean 'normalize'?"),
    (lambda: EMACodebook(8, 4, decay=0.99), "did you mean 'usage_decay'?"),
    (lambda: StraightThrough(scale="one"), "StraightThrough has no argument 'scale': it takes none"),
    (lambda: RotationTrick(angle=180.0), "it takes largest_angle"),
    (lambda: RandomRestart(thresold=0.1), "did you mean 'threshold'?"),
    (lambda: Commitment(beta=0.25), "it takes weight"),
    (lambda: Search(distance="cosine"), "it takes metric"),
    (lambda: FSQ([5, 5], codebook_size=25), "it takes levels, dim, channel_dim"),
    (lambda: LFQ(8, entropy_weight=0.1), "losses=[BitEntropy(weight=0.1)]"),
    (lambda: ResidualQuantizer(vq, 2, quantize_dropout=True), "did you mean 'dropout'?"),
    (lambda: GroupedQuantizer(vq, 2, codebook_size=8), "group=functools.partial(Quantizer, codebook_size=8)"),
    (lambda: Tokenizer(None, None, None, codebook_size=8), "quantizer=Quantizer(codebook_size=8)"),
    (lambda: AudioTokenizer(None, None, None, samplerate=1), "did you mean 'sample_rate'?"),
    (lambda: Quantizer("vq", 4, 8), "positional"),
    (lambda: ResidualQuantizer(vq, 2, None), "positional"),
    literal=True,
    error=TypeError,
)

"""Each quantizer of vqkit and its counterpart in vector-quantize-pytorch, built equal, and a step of either."""

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.arguments import Shape
from vqkit import (
    FSQ,
    BaseQuantizer,
    CodebookLoss,
    Commitment,
    GroupedQuantizer,
    Loss,
    MultiScaleQuantizer,
    Quantizer,
    QuantizerOutput,
    ResidualQuantizer,
    RotationTrick,
)

try:
    import vector_quantize_pytorch as peer
except ModuleNotFoundError as error:
    if error.name != "vector_quantize_pytorch":
        raise
    peer = None

PEER_NAME = "vector-quantize-pytorch"
PEER = "VQP"  # in the tables
STAGES = 4
GROUPS = 8
SCALES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
PHI_OF_SCALE = (0, 0, 1, 1, 1, 2, 2, 3, 3, 3)
FSQ_LEVELS = ([4, 4], [4, 4, 4], [8, 6, 5], [8, 5, 5, 5], [7, 5, 5, 5, 5], [8, 8, 8, 6, 5], [8, 8, 8, 5, 5, 5])


@dataclass(frozen=True)
class Comparison:
    """A method on both sides. `theirs` is given ours, to take over its codes and weights; `other` is its name, and
    `shapes` are those of this row alone, where it is not measured at those of its table.
    """

    ours: Callable[[Shape], nn.Module]
    theirs: Callable[[Shape, nn.Module], nn.Module]
    state_of_ours: str
    state_of_theirs: str
    other: str = PEER
    shapes: Sequence[Shape] = ()

    @property
    def sides(self) -> range:
        """Of what can be built: both, or ours alone."""
        return range(1 if self.other == PEER and peer is None else 2)


def _codes(shape: Shape, stage: int = 0) -> Tensor:
    """(K, D): smaller for each later stage, as residuals are."""
    generator = torch.Generator().manual_seed(1 + stage)
    return torch.randn(shape.codes, shape.dim, generator=generator) * 0.5**stage


def _with_codes(quantizer: Quantizer, codes: Tensor) -> Quantizer:
    with torch.no_grad():
        quantizer.codebook.vectors.copy_(codes)
    return quantizer


def _gradient_vq(shape: Shape, stage: int = 0, **parts: object) -> Quantizer:
    losses = [Commitment(1.0), CodebookLoss(1.0)]
    quantizer = Quantizer("vq", dim=shape.dim, codebook_size=shape.codes, losses=losses, **parts)
    return _with_codes(quantizer, _codes(shape, stage))


def _ema(shape: Shape, stage: int = 0) -> Quantizer:
    quantizer = Quantizer("ema", dim=shape.dim, codebook_size=shape.codes, losses=[Commitment(1.0)], maintenance=[])
    return _with_codes(quantizer, _codes(shape, stage))


def _residual(shape: Shape, build: Callable[..., Quantizer] = _ema, stages: int = STAGES) -> ResidualQuantizer:
    stage = itertools.count()
    return ResidualQuantizer(lambda: build(shape, next(stage)), stages)


def _grouped(shape: Shape, build: Callable[..., Quantizer]) -> GroupedQuantizer:
    group = itertools.count()
    return GroupedQuantizer(lambda: build(_of_group(shape), next(group)), GROUPS)


def _of_group(shape: Shape) -> Shape:
    if shape.dim % GROUPS:
        raise ValueError(f"D={shape.dim} does not divide into {GROUPS} groups")
    return shape._replace(dim=shape.dim // GROUPS)


def _fsq(shape: Shape) -> FSQ:
    levels = min(FSQ_LEVELS, key=lambda levels: abs(math.log(math.prod(levels) / shape.codes)))
    return FSQ(levels, dim=shape.dim)


def _their_vq(shape: Shape, ours: BaseQuantizer, **options: object) -> nn.Module:
    return _take_codes(peer.VectorQuantize(shape.dim, shape.codes, **options), _codes(shape))


EMA: dict[str, object] = {"decay": 0.99, "rotation_trick": False}
GRADIENT: dict[str, object] = {"learnable_codebook": True, "ema_update": False, "rotation_trick": False}


def _their_residual(shape: Shape, ours: BaseQuantizer, stages: int = STAGES, **options: object) -> nn.Module:
    options = options or EMA
    module = peer.ResidualVQ(dim=shape.dim, num_quantizers=stages, codebook_size=shape.codes, **options)
    for stage, layer in enumerate(module.layers):
        _take_codes(layer, _codes(shape, stage))
    return module


class TheirGroups(nn.Module):
    """Their groups, of one stage each, with indices in our layout."""

    def __init__(self, shape: Shape, ours: BaseQuantizer, **options: object) -> None:
        super().__init__()
        self.module = peer.GroupedResidualVQ(
            dim=shape.dim, groups=GROUPS, num_quantizers=1, codebook_size=shape.codes, **options
        )
        for group, stages in enumerate(self.module.rvqs):
            _take_codes(stages.layers[0], _codes(_of_group(shape), group))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors, indices (1, N, groups) and losses."""
        quantized, indices, losses = self.module(x)
        return quantized, indices.squeeze(-1).movedim(0, -1), losses


class OfMaps(nn.Module):
    """Our scales, given the vectors of maps (B, D, S, S) as (1, N, D): both sides see the same numbers so."""

    def __init__(self, quantizer: MultiScaleQuantizer) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors, indices (B, L) and the loss."""
        output = self.quantizer(_maps(x))
        return output.quantized.reshape(x.shape), output.indices, output.loss


class PlainScales(nn.Module):
    """VAR's scales as a plain loop (Tian et al. 2024, arXiv:2404.02905, algorithm 1), with an N x K matrix a scale.

    With `decay` the codes are not trained but moved by the statistics of all scales, as `EMACodebook` says.
    """

    def __init__(self, shape: Shape, ours: OfMaps, decay: float | None = None) -> None:
        super().__init__()
        self.codes = nn.Parameter(ours.quantizer.stages[0].codebook.vectors.detach().clone(), decay is None)
        self.phis = copy.deepcopy(ours.quantizer.phi.convolutions) if ours.quantizer.phi else None
        self.decay = decay
        self.register_buffer("counts", torch.ones(shape.codes))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors, indices (B, L) and the loss."""
        f = _maps(x)
        total, rest, losses, chosen, given = torch.zeros_like(f), f.detach(), [], [], []
        for number, size in enumerate(SCALES):
            grid = F.interpolate(rest, size=(size, size), mode="area") if size < SCALES[-1] else rest
            rows = grid.movedim(1, -1).flatten(0, -2)
            products = torch.addmm(self.codes.detach().square().sum(1), rows, self.codes.detach().T, alpha=-2)
            indices = products.argmin(1)
            added = F.embedding(indices, self.codes).unflatten(0, (len(f), size, size)).movedim(-1, 1)
            if size < SCALES[-1]:
                added = F.interpolate(added, size=f.shape[2:], mode="bicubic")
            if self.phis is not None:
                added = 0.5 * added + 0.5 * self.phis[PHI_OF_SCALE[number]](added)
            total, rest = total + added, rest - added.detach()
            losses.append(F.mse_loss(total.detach(), f))
            if self.decay is None:
                losses.append(F.mse_loss(total, f.detach()))
            chosen.append(indices)
            given.append(rows)
        if self.decay is not None:
            self._move(torch.cat(chosen), torch.cat(given))
        indices = torch.cat([part.view(len(f), -1) for part in chosen], dim=1)
        return (f + (total - f).detach()).view(x.shape), indices, sum(losses) / len(SCALES)

    @torch.no_grad()
    def _move(self, chosen: Tensor, given: Tensor) -> None:
        counts = chosen.bincount(minlength=len(self.codes)).to(given)
        sums = torch.zeros_like(self.codes).index_add_(0, chosen, given)
        self.counts.lerp_(counts, 1 - self.decay)
        shift = (sums - counts.unsqueeze(1) * self.codes) / self.counts.unsqueeze(1)
        self.codes += (1 - self.decay) * shift


def _maps(x: Tensor) -> Tensor:
    return x.view(-1, x.shape[-1], SCALES[-1], SCALES[-1])


def _scales(shape: Shape, build: Callable[[Shape], Quantizer], losses: Sequence[Loss], num_phis: int) -> OfMaps:
    if shape.vectors % SCALES[-1] ** 2:
        raise ValueError(f"N={shape.vectors} is not a number of maps of {SCALES[-1]} x {SCALES[-1]} vectors")
    stage = partial(build, shape)
    return OfMaps(MultiScaleQuantizer(stage, SCALES, num_phis=num_phis, losses=losses, channel_dim=1))


@torch.no_grad()
def _take_codes(module: nn.Module, codes: Tensor) -> nn.Module:
    module._codebook.embed.copy_(codes[None])
    module._codebook.embed_avg.copy_(codes[None])  # their running counts start at 1, as ours do
    return module


@torch.no_grad()
def _their_simvq(shape: Shape, ours: Quantizer) -> nn.Module:
    projector = nn.Linear(shape.dim, shape.dim)
    module = peer.SimVQ(shape.dim, shape.codes, codebook_transform=projector, rotation_trick=False)
    module.frozen_codebook.copy_(ours.codebook.base)
    module.code_transform.load_state_dict(ours.codebook.projector.state_dict())
    return module


@torch.no_grad()
def _their_fsq(shape: Shape, ours: FSQ) -> nn.Module:
    module = peer.FSQ(list(ours.levels), dim=shape.dim)
    module.project_in.load_state_dict(ours.project_in.state_dict())
    module.project_out.load_state_dict(ours.project_out.state_dict())
    return module


COMPARISONS: dict[str, Comparison] = {
    "vq": Comparison(
        _gradient_vq,
        partial(_their_vq, **GRADIENT),
        "`Quantizer('vq', losses=[Commitment(1.0), CodebookLoss(1.0)])`",
        "`VectorQuantize(learnable_codebook=True, ema_update=False, rotation_trick=False)`",
    ),
    "ema": Comparison(
        _ema,
        partial(_their_vq, **EMA),
        "`Quantizer('ema', losses=[Commitment(1.0)], maintenance=[])`, decay 0.99",
        "`VectorQuantize(decay=0.99, rotation_trick=False)`",
    ),
    "simvq": Comparison(
        lambda shape: Quantizer("simvq", dim=shape.dim, codebook_size=shape.codes),
        _their_simvq,
        "`Quantizer('simvq')`",
        "`SimVQ(codebook_transform=nn.Linear(D, D), rotation_trick=False)`",
    ),
    "rotation": Comparison(
        partial(_gradient_vq, estimator=RotationTrick(largest_angle=180)),
        partial(_their_vq, learnable_codebook=True, ema_update=False, rotation_trick=True),
        "as vq, with `estimator=RotationTrick(largest_angle=180)`",
        "as vq, with `rotation_trick=True`",
    ),
    "fsq": Comparison(
        _fsq,
        _their_fsq,
        "`FSQ(levels, dim=D)`, the recommended levels of about K codes",
        "`FSQ(levels, dim=D)`",
    ),
    "residual": Comparison(
        _residual,
        _their_residual,
        f"`ResidualQuantizer` of {STAGES} stages as ema",
        f"`ResidualVQ(num_quantizers={STAGES}, decay=0.99, rotation_trick=False)`",
    ),
}


def _composites() -> dict[str, Comparison]:
    """Residual chains of 8 and 32 stages, groups, and VAR's scales, of either method."""
    made = {}
    for name, build, options in (("ema", _ema, EMA), ("vq", _gradient_vq, GRADIENT)):
        said = ", ".join(f"{option}={value}" for option, value in options.items())
        for stages in (8, 32):
            made[f"{stages} stages of {name}"] = Comparison(
                partial(_residual, build=build, stages=stages),
                partial(_their_residual, stages=stages, **options),
                f"`ResidualQuantizer` of {stages} stages as {name}",
                f"`ResidualVQ(num_quantizers={stages}, {said})`",
            )
        made[f"{GROUPS} groups of {name}"] = Comparison(
            partial(_grouped, build=build),
            partial(TheirGroups, **options),
            f"`GroupedQuantizer` of {GROUPS} groups as {name}",
            f"`GroupedResidualVQ(groups={GROUPS}, num_quantizers=1, {said})`",
        )
    said = f"`MultiScaleQuantizer` of {SCALES[-1]} x {SCALES[-1]} maps as"
    loop = "its equations in torch, `PlainScales` of `benchmarks/counterparts.py`"
    for name, build, losses, phis, decay in (
        ("ema", _ema, [Commitment(1.0)], 0, 0.99),
        ("vq", _gradient_vq, [Commitment(1.0), CodebookLoss(1.0)], 4, None),
    ):
        made[f"{len(SCALES)} scales of {name}"] = Comparison(
            partial(_scales, build=build, losses=losses, num_phis=phis),
            partial(PlainScales, decay=decay),
            f"{said} {name}, {phis} phis",
            loop,
            other="loop",
            shapes=(Shape(4096, 4096, 32),),
        )
    return made


COMPOSITES = _composites()


def comparison(method: str) -> Comparison:
    """Of either table."""
    return (COMPARISONS | COMPOSITES)[method]


def build(method: str, side: int, shape: Shape, device: str) -> nn.Module:
    """A module in training mode; side 0 is ours, 1 is theirs."""
    torch.manual_seed(0)
    module = comparison(method).ours(shape)
    return (comparison(method).theirs(shape, module) if side else module).to(device).train()


def tensors(shape: Shape, device: str) -> tuple[Tensor, Tensor]:
    """Input (1, N, D), a leaf that takes a gradient, and the gradient that arrives from the decoder."""
    generator = torch.Generator().manual_seed(0)
    x, upstream = torch.randn(2, 1, shape.vectors, shape.dim, generator=generator).to(device)
    return x.requires_grad_(), upstream


def step(module: nn.Module, x: Tensor, upstream: Tensor) -> Tensor:
    """Forward and backward; the indices."""
    output = module(x)
    if isinstance(output, QuantizerOutput):
        quantized, indices, losses = output.quantized, output.indices, [output.loss]
    else:  # their FSQ has no loss, and their residual quantizer one for each stage
        quantized, indices, *losses = output
        losses = [loss.mean() for loss in losses]
    torch.autograd.backward([quantized, *losses], [upstream, *(torch.ones_like(loss) for loss in losses)])
    return indices


def warm_up(modules: Sequence[nn.Module], shape: Shape, device: str) -> None:
    """A step of few vectors, for what libraries set up at first use; leaves full-size memory untouched."""
    x, upstream = tensors(shape._replace(vectors=min(shape.vectors, SCALES[-1] ** 2)), device)
    for module in modules:
        step(module, x, upstream)

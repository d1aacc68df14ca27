"""Each quantizer of vqkit and its counterpart in vector-quantize-pytorch, built equal, and a step of either."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.arguments import Shape
from vqkit import (
    FSQ,
    BaseQuantizer,
    CodebookLoss,
    Commitment,
    GroupedQuantizer,
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
STAGES = 4
GROUPS = 8
FSQ_LEVELS = ([4, 4], [4, 4, 4], [8, 6, 5], [8, 5, 5, 5], [7, 5, 5, 5, 5], [8, 8, 8, 6, 5], [8, 8, 8, 5, 5, 5])


@dataclass(frozen=True)
class Comparison:
    """A method on both sides. `theirs` is given ours, to take over its codes and weights."""

    ours: Callable[[Shape], BaseQuantizer]
    theirs: Callable[[Shape, BaseQuantizer], nn.Module]
    state_of_ours: str
    state_of_theirs: str


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
    """Residual chains of 8 and 32 stages, and groups, of either method."""
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
    return made


COMPOSITES = _composites()


def build(method: str, side: int, shape: Shape, device: str) -> nn.Module:
    """A module in training mode; side 0 is ours, 1 is theirs."""
    torch.manual_seed(0)
    comparison = (COMPARISONS | COMPOSITES)[method]
    module = comparison.ours(shape)
    return (comparison.theirs(shape, module) if side else module).to(device).train()


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
    x, upstream = tensors(shape._replace(vectors=min(shape.vectors, 64)), device)
    for module in modules:
        step(module, x, upstream)

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


def _gradient_vq(shape: Shape, **parts: object) -> Quantizer:
    losses = [Commitment(1.0), CodebookLoss(1.0)]
    return _with_codes(Quantizer("vq", dim=shape.dim, codebook_size=shape.codes, losses=losses, **parts), _codes(shape))


def _ema(shape: Shape, stage: int = 0) -> Quantizer:
    quantizer = Quantizer("ema", dim=shape.dim, codebook_size=shape.codes, losses=[Commitment(1.0)], maintenance=[])
    return _with_codes(quantizer, _codes(shape, stage))


def _residual(shape: Shape) -> ResidualQuantizer:
    stage = itertools.count()
    return ResidualQuantizer(lambda: _ema(shape, next(stage)), STAGES)


def _fsq(shape: Shape) -> FSQ:
    levels = min(FSQ_LEVELS, key=lambda levels: abs(math.log(math.prod(levels) / shape.codes)))
    return FSQ(levels, dim=shape.dim)


def _their_vq(shape: Shape, ours: BaseQuantizer, **options: object) -> nn.Module:
    return _take_codes(peer.VectorQuantize(shape.dim, shape.codes, **options), _codes(shape))


def _their_residual(shape: Shape, ours: BaseQuantizer) -> nn.Module:
    module = peer.ResidualVQ(
        dim=shape.dim, num_quantizers=STAGES, codebook_size=shape.codes, decay=0.99, rotation_trick=False
    )
    for stage, layer in enumerate(module.layers):
        _take_codes(layer, _codes(shape, stage))
    return module


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
        partial(_their_vq, learnable_codebook=True, ema_update=False, rotation_trick=False),
        "`Quantizer('vq', losses=[Commitment(1.0), CodebookLoss(1.0)])`",
        "`VectorQuantize(learnable_codebook=True, ema_update=False, rotation_trick=False)`",
    ),
    "ema": Comparison(
        _ema,
        partial(_their_vq, decay=0.99, rotation_trick=False),
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


def build(method: str, side: int, shape: Shape, device: str) -> nn.Module:
    """A module in training mode; side 0 is ours, 1 is theirs."""
    torch.manual_seed(0)
    comparison = COMPARISONS[method]
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

"""ONNX files of quantizers and tokenizers: from data to indices, and from indices to data."""

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from vqkit.precision import widened
from vqkit.quantizers.base import BaseQuantizer
from vqkit.quantizers.rows import RowQuantizer
from vqkit.saving.files import write_whole
from vqkit.tokenizers.audio import AudioTokenizer
from vqkit.tokenizers.tokenizer import Tokenizer

_OPSET = 20


class _Half(nn.Module):
    names: tuple[str, str]
    """Of input and output, in the file."""

    def __init__(self, module: BaseQuantizer | Tokenizer) -> None:
        super().__init__()
        self.module = module
        self.train(module.training)


class Encode(_Half):
    """The encoding half of a quantizer or a tokenizer, as `export_onnx` takes it: x -> indices."""

    names = ("x", "indices")

    def forward(self, x: Tensor) -> Tensor:
        """`module.encode(x)`."""
        return self.module.encode(x)


class Decode(_Half):
    """The decoding half of a quantizer or a tokenizer, as `export_onnx` takes it: indices -> vectors, or data."""

    names = ("indices", "x")

    def forward(self, indices: Tensor) -> Tensor:
        """`module.decode(indices)`."""
        return self.module.decode(indices)


def export_onnx(
    module: Encode | Decode, example: Tensor, path: str | os.PathLike[str], *, dynamic: bool = True
) -> None:
    """Write an ONNX file that ONNX Runtime and others run without torch.

        >>> export_onnx(Encode(tokenizer.eval()), images, "encode.onnx")
        >>> export_onnx(Decode(tokenizer), indices, "decode.onnx")

    The graph finds the codes that eager finds: it searches in float64, and the lowest index wins among those that
    float64 cannot tell apart. It does so with all N x K scores at once, so cut large batches. What computes the latents
    is rounded by each runtime in its own way (convolutions, projections, normalisation), so that a latent within this
    rounding, about 1e-6 of its size, of the border between two codes may go to the other one. Indices are not checked
    by the decoding graph.

    The file holds the weights too, and is at most 2 GiB, the limit of the format. It is written under a temporary name
    and moved into place.

    Args:
        module: `Encode` or `Decode` of a quantizer or tokenizer in eval mode.
        example: an input, such as data or latents (B, ...) for `Encode` and indices for `Decode`; only its shape, dtype
            and device matter. Sizes that shall be dynamic are 2 or more: one of 1 stays 1 (but for the batch). Where
            a sequence is quantized in steps (`positions_per_step`), one of a single step is repeated. Where attention
            has a window, as in Mimi, it is longer than that (there 10 s): runtimes stop at what is longer otherwise.
        path: of the file; one that is there is replaced. Its folder must exist.
        dynamic: whether the file takes any batch size, and any length, height and width that the module takes; where
            the module needs one size, the shape of the file's input has its number, and a runtime refuses others. What
            `encode` refuses in words, such as images that do not divide into latents, the file does not; a recording
            too short to be mirrored (`padding_mode="reflect"`) the runtime refuses. False fixes all sizes to the
            example's.

    Raises:
        ValueError: the module is in training mode, or `dynamic` with an LSTM in this half, of which the file has
            every step.
        FileNotFoundError: the folder is missing.
        ImportError: onnx or onnxscript is not installed.
    """
    if module.training:
        raise ValueError(
            f"{type(module).__name__} of a module in training mode: expected eval mode; call .eval() first"
        )
    other = "decoder." if isinstance(module, Encode) else "encoder."
    layers = ((name, part) for name, part in module.module.named_modules() if not name.startswith(other))
    recurrent = next((name for name, part in layers if isinstance(part, nn.RNNBase)), None)
    if dynamic and recurrent is not None:
        raise ValueError(
            f"dynamic=True with {recurrent}, a recurrent layer: the file has each of its steps, and so one length; give"
            " dynamic=False, and an example of the size that the file is to take"
        )
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target.parent} is not a folder: create it first")
    _import_onnx()
    source, result = module.names
    if dynamic:
        example = _of_two_steps(module, example)
        if len(example) == 1:
            example = example.expand(2, *example.shape[1:])  # a traced size of 1 would stay 1
    kinds = torch.export.Dim
    sizes = {axis: kinds.STATIC if size == 1 else kinds.AUTO for axis, size in enumerate(example.shape)}
    shapes = (sizes | {0: kinds.DYNAMIC},) if dynamic else None
    with torch.no_grad(), warnings.catch_warnings():
        # torch 2.11 uses what it deprecates itself.
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        warnings.filterwarnings("ignore", message="The tensor attributes .*_flat_weights", category=UserWarning)
        program = torch.export.export(module, (example,), dynamic_shapes=shapes).run_decompositions(_LOWERED)
        model = torch.onnx.export(
            program, (example,), input_names=[source], output_names=[result], opset_version=_OPSET, verbose=False
        )
    assert model is not None  # it is where no path is given
    for node in model.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces, with the paths of this machine
    write_whole(target, model.model_proto.SerializeToString())


def _of_two_steps(module: Encode | Decode, example: Tensor) -> Tensor:
    """The example, repeated in time where it is one step of several positions: its length would be fixed."""
    owner = module.module
    quantizer = owner if isinstance(owner, BaseQuantizer) else owner.quantizer
    positions = quantizer.positions_per_step
    if not isinstance(quantizer, RowQuantizer) or positions is None:
        return example
    if isinstance(module, Decode):
        if example.shape[1] != sum(quantizer.cells):
            return example  # of several steps, or the first scales of one
        return quantizer.deinterleave(torch.cat(2 * [quantizer.interleave(example)], dim=1))
    if isinstance(owner, AudioTokenizer):
        step, axis = owner.frames_per_step * owner.downsampling_factor, 2
    elif isinstance(owner, BaseQuantizer):
        step, axis = positions, 2 if owner.channel_dim % example.ndim == 1 else 1
    else:
        return example
    length = example.shape[axis]
    return torch.cat((step // length + 1) * [example], dim=axis) if length <= step else example


def _import_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise ImportError('export_onnx needs onnx and onnxscript: pip install "vqkit[export]"') from error


def _nearest(x: Tensor, codes: Tensor, valid: Tensor | None, metric: str, k: int, precision: str) -> Tensor:
    """`vqkit::nearest` in plain operators: (G, N, D), (G, K, D), (G, K) -> (G, N, k)."""
    rows, books = widened(x), widened(codes)
    scores: Tensor | float = 0.0
    if metric == "cosine":
        norm = torch.linalg.vector_norm(books, dim=-1, keepdim=True)
        books = books / torch.where(norm > 0, norm, 1.0)  # a zero code stays zero; files lose eps of float64, 2e-308
    if metric == "euclidean":
        centre = books.mean(-2, keepdim=True)
        rows, books = rows - centre, books - centre
        scores = 0.5 * books.square().sum(-1).unsqueeze(-2)
    scores = scores - rows @ books.mT
    if valid is not None:
        scores = torch.where(valid.unsqueeze(-2), scores, torch.inf)
    length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    longest = torch.linalg.vector_norm(books, dim=-1).amax(-1)[:, None, None]
    rounding = torch.finfo(rows.dtype).eps * (x.shape[-1] + 4) * longest * (length + longest)
    found: list[Tensor] = []
    while True:
        tied = scores <= scores.amin(-1, keepdim=True) + rounding
        found.append(tied.int().argmax(-1, keepdim=True))
        if len(found) == k:
            return torch.cat(found, -1)
        scores = scores.scatter(-1, found[-1], torch.inf)


def _residual_nearest(x: Tensor, codebooks: Sequence[Tensor], metric: str) -> Tensor:
    """`vqkit::residual_nearest` in plain operators: (N, D), S times (K, D) -> (N, S)."""
    indices: list[Tensor] = []
    total = torch.zeros_like(x)
    for codes in codebooks:
        indices.append(_nearest((x - total)[None], codes[None], None, metric, 1, "exact")[0, :, 0])
        total = total + codes[indices[-1]]
    return torch.stack(indices, 1)


_LOWERED: dict[torch._ops.OperatorBase, Callable] = {
    torch.ops.vqkit.nearest.default: _nearest,
    torch.ops.vqkit.residual_nearest.default: _residual_nearest,
}

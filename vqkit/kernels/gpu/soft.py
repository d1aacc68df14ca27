"""Soft assignment on a GPU: what the operators of `vqkit.kernels` call there.

Nothing of size N x K is stored: the logits are formed anew in each pass, tile by tile. Inputs of any of the dtypes are
taken at their values; torch's matmul precision flags play no part. docs/soft_assignment.md has the formulas.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vqkit.kernels.gpu.soft_passes import Operands, Terms, code_sums, gradients, row_sums
from vqkit.kernels.gpu.split_operands import TOP, SplitVectors, split_vectors
from vqkit.kernels.gpu.tiles import padding_of, round_up, tile_of


def assignment_entropy(z: Tensor, codes: Tensor, weights: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Float32 entropies (N,) and mean probabilities (K,), as `vqkit.kernels.assignment_entropy`."""
    problem = _prepare(z, codes, temperature, weights > 0)
    sums = row_sums(problem, Terms(linear=torch.ones_like(problem.z.unit)))
    # log s - sum p (l - max l): two terms of one sign, neither of which grows with the logits
    entropies = sums.total.log() - sums.weighted / sums.total
    mean = code_sums(problem, sums, _zero_padded(weights, problem))
    return torch.where(weights > 0, entropies[: len(z)], 0), mean


def assignment_entropy_backward(
    dentropies: Tensor, dmean: Tensor, z: Tensor, codes: Tensor, weights: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Float32 gradients (N, D), (K, D) for those to the entropies (N,) and to the mean probabilities (K,)."""
    problem = _prepare(z, codes, temperature, weights > 0)
    linear = _zero_padded(-torch.where(weights > 0, dentropies, 0), problem)
    value = F.pad(dmean.float(), (0, len(problem.bias) - len(dmean)))
    terms = Terms(linear=linear, weight=_zero_padded(weights, problem), value=value)
    sums = row_sums(problem, terms)
    return gradients(problem, sums, terms, sums.weighted / sums.total)


def index_backpropagation_backward(
    gradient: Tensor, z: Tensor, codes: Tensor, indices: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Float32 gradients (N, D), (K, D) for the gradient (N, D)."""
    kept = indices >= 0
    problem = _prepare(z, codes, temperature, kept)
    gradient = _zeroed(gradient, kept)
    terms = Terms(query=_split(gradient.clone(), len(problem.z.unit)))
    sums = row_sums(problem, terms)
    dz, dcodes = gradients(problem, sums, terms, sums.weighted / sums.total)
    return dz, dcodes.index_add_(0, indices.clamp(min=0), gradient)


def reinmax_backward(gradient: Tensor, z: Tensor, codes: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Float32 gradients (N, D), (K, D) for the gradient (N, D).

    The passes form p (v - v_D); what ReinMax adds to the logit of the drawn code D is one term for each row.
    """
    kept = indices >= 0
    problem = _prepare(z, codes, 1.0, kept)
    gradient, rows, drawn = _zeroed(gradient, kept), _zeroed(z, kept), indices.clamp(min=0)
    terms = Terms(query=_split(gradient.clone(), len(problem.z.unit)))
    sums = row_sums(problem, terms)
    centred = codes[drawn].float() - problem.mean
    value = (gradient * centred).sum(1)
    dz, dcodes = gradients(problem, sums, terms, _zero_padded(value, problem))
    excess = (value - (sums.weighted / sums.total)[: len(z)])[:, None]
    dz.addcmul_(excess, centred)
    dcodes.index_add_(0, drawn, excess * rows)
    return dz.mul_(0.5), dcodes.mul_(0.5).index_add_(0, drawn, gradient)


def _prepare(z: Tensor, codes: Tensor, temperature: float, kept: Tensor) -> Operands:
    padding = padding_of(z.device)
    rows, columns = (round_up(max(1, len(vectors)), padding) for vectors in (z, codes))
    mean = codes.mean(0, dtype=torch.float32)
    # Less the mean code: it shifts all logits of a row alike, and would cost digits.
    split_codes = _split(codes - mean, columns, common=True)
    split_rows = _split(_zeroed(z, kept), rows)
    factor = split_rows.unit * (split_codes.unit / (TOP.value * TOP.value * temperature))
    bias = mean.new_zeros(columns)
    bias[len(codes) :] = -torch.inf
    return Operands(split_rows, split_codes, mean, factor, bias, (len(z), *codes.shape), temperature)


def _split(vectors: Tensor, padded: int, *, common: bool = False) -> SplitVectors:
    depth = vectors.shape[1]
    return split_vectors(vectors, padded, tile_of("row sums", depth, vectors.device).width(depth), common=common)


def _zeroed(rows: Tensor, kept: Tensor) -> Tensor:
    return torch.where(kept[:, None], rows, 0).float()


def _zero_padded(values: Tensor, problem: Operands) -> Tensor:
    """(N') float32: values (N,) and zeros."""
    return F.pad(values.float(), (0, len(problem.factor) - len(values)))

"""Infomax: codes of d digits, each one of k symbols, that say as much as they can of a label, or of the sample itself.

An encoder gives each sample d distributions over k symbols, (B, d, k); the code is the most probable symbol of each
digit, d log2 k bits. These are functions of such probabilities, whatever made them:

    >>> probabilities = head(features).unflatten(-1, (digits, symbols)).softmax(-1)
    >>> loss = infomax_loss(probabilities, labels, num_classes=10) + digit_dependence(probabilities)
    >>> codes = probabilities.argmax(-1)                      # (B, d), what is stored
    >>> scores = code_scores(query_probabilities.log(), codes)  # (Q, B), larger is nearer

Source: DIMCO, Lee, Kim, Park, Choi 2019, "Discrete Infomax Codes for Supervised Representation Learning"
(https://arxiv.org/abs/1905.11656).
"""

import math

import torch
from torch import Tensor

from vqkit.distributed import sum_over_ranks
from vqkit.kernels import entropy
from vqkit.kernels.statistics import check_range
from vqkit.runtime import autocast_disabled


def infomax_loss(probabilities: Tensor, labels: Tensor | None = None, *, num_classes: int | None = None) -> Tensor:
    """Minus the information that the digits give of the label, each for itself: -sum_j I(X_j; Y), in nats.

    I(X_j; Y) = H(mean p_j) - sum_y p(y) H(mean of p_j over the samples of class y), with means over the batch of all
    ranks. Without labels each sample is a class of its own, and this is mean_n H(p_n) - H(mean_n p_n), summed over
    digits: the entropy loss of LFQ, `BitEntropy(group_bits=1)` for digits that are bits, and that of a codebook,
    `Entropy`, for one digit. With as many symbols as classes, one digit and decided symbols that are the classes, it is
    -H(Y), its least.

    It is at least -min(log num_classes, d log k) if the digits are independent; digits that repeat one another count
    again, which `digit_dependence` takes back. A batch of B samples puts H(mean p_j) too low, by about (k - 1) / (2 B)
    nats, and a class that a batch holds once says nothing: take several samples of each class.

    Args:
        probabilities: (B, d, k) floating point, at least 0, adding up to 1 over symbols; B may be 0, then the loss is
            that of the other ranks, or 0.
        labels: (B,) integers in 0 ... num_classes - 1; None for none.
        num_classes: of the labels, and only with them.

    Returns:
        scalar, with gradient to the probabilities; float32, float64 for float64. Every rank has to call it.

    Raises:
        ValueError: a shape or dtype is wrong, a label is out of its range (a GPU is not asked, as that would wait), or
            one of labels and num_classes is missing.

    Source: Lee et al. 2019 (https://arxiv.org/abs/1905.11656), the infomax objective factorised over digits.
    """
    probabilities = _checked(probabilities)
    batch, digits, symbols = probabilities.shape
    if (labels is None) != (num_classes is None):
        raise ValueError(
            f"num_classes={num_classes} {'without' if labels is None else 'with'} labels: expected both or neither"
        )
    if labels is None or num_classes is None:
        undecided = entropy(probabilities).sum()
        own = torch.cat([probabilities.sum(0).flatten(), torch.stack([undecided, undecided.new_tensor(batch)])])
        total = sum_over_ranks(own)
        number = total[-1].clamp(min=1)
        return total[-2] / number - entropy((total[:-2] / number).view(digits, symbols)).sum()
    _check_labels(labels, batch, num_classes)
    table = probabilities.new_zeros(num_classes, digits * symbols).index_add(0, labels, probabilities.flatten(1))
    counts = probabilities.new_zeros(num_classes).index_add(0, labels, probabilities.new_ones(batch))
    total = sum_over_ranks(torch.cat([table, counts[:, None]], 1))
    sums, counts = total[:, :-1], total[:, -1]
    number = counts.sum().clamp(min=1)
    of_class = (sums / counts.clamp(min=1)[:, None]).view(num_classes, digits, symbols)
    conditional = (counts / number * entropy(of_class).sum(1)).sum()  # no product that autocast would round
    return conditional - entropy((sums.sum(0) / number).view(digits, symbols)).sum()


def digit_dependence(probabilities: Tensor) -> Tensor:
    """How much the digits say of one another: sum_{i<j} I(X_i; X_j), in nats, at least 0 up to rounding.

    The joint distribution of two digits is the mean over the batch of all ranks of the products of their probabilities:
    digits of one sample are drawn independently. Added to `infomax_loss` with weight 1 it takes back, to second order,
    what digits that repeat one another count again: sum_j I(X_j; Y) is the joint I(X; Y) plus the total correlation of
    X less that within classes. Memory is O((d k)^2).

    Args:
        probabilities: as for `infomax_loss`.

    Returns:
        scalar, with gradient to the probabilities. Every rank has to call it.

    Raises:
        ValueError: a shape or dtype is wrong.

    Source: the regularization of Lee et al. 2019 (https://arxiv.org/abs/1905.11656), which makes digits independent.
    Differs: its exact form and weight were not seen. Minus the joint entropies of the pairs, as others describe it, has
    the same optimum where each digit uses its symbols equally.
    """
    probabilities = _checked(probabilities)
    batch, digits, symbols = probabilities.shape
    flat = probabilities.flatten(1)
    with autocast_disabled(flat.device):
        pairs = (flat.T @ flat).flatten()
    total = sum_over_ranks(torch.cat([pairs, flat.sum(0), flat.new_tensor([batch])]))
    products, sums = (total[:-1] / total[-1].clamp(min=1)).split([flat.shape[1] ** 2, flat.shape[1]])
    joint = products.view(digits, symbols, digits, symbols).transpose(1, 2)
    single = entropy(sums.view(digits, symbols))
    shared = single[:, None] + single - entropy(joint.flatten(2))
    return shared.triu(1).sum()


def code_scores(log_probabilities: Tensor, codes: Tensor) -> Tensor:
    """The log-probability that each query has each stored code: sum_j log P_q[j, code_s[j]]; larger is nearer.

    A query keeps its probabilities and what is stored is codes alone, as in the asymmetric distance of product
    quantization. Equal codes have equal scores: with few bits there are many ties.

    Args:
        log_probabilities: (Q, d, k) floating point; -inf for 0.
        codes: (S, d) integers in 0 ... k - 1.

    Returns:
        (Q, S) float32, float64 for float64, without gradient.

    Raises:
        ValueError: a shape or dtype is wrong, or a code is out of its range.
    """
    if log_probabilities.ndim != 3 or not log_probabilities.is_floating_point():
        raise ValueError(f"log_probabilities {_described(log_probabilities)}: expected (Q, d, k) floating point")
    digits, symbols = log_probabilities.shape[1:]
    if codes.ndim != 2 or codes.shape[1] != digits or codes.dtype not in _INTEGERS:
        raise ValueError(f"codes {_described(codes)}: expected (S, {digits}) integers, a digit for each distribution")
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < symbols:
        raise ValueError(f"codes holds {int(codes.min())} ... {int(codes.max())}: expected 0 ... {symbols - 1}")
    queries = log_probabilities.detach().to(torch.promote_types(log_probabilities.dtype, torch.float32))
    scores = queries.new_zeros(len(queries), len(codes))
    for digit, chosen in enumerate(codes.long().unbind(1)):
        scores += queries[:, digit].index_select(1, chosen)
    return scores


def storage_bits(digits: int, symbols: int) -> float:
    """Bits of a code: d log2 k."""
    if digits < 1 or symbols < 1:
        raise ValueError(f"digits={digits}, symbols={symbols}: expected at least 1")
    return digits * math.log2(symbols)


_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def _checked(probabilities: Tensor) -> Tensor:
    """(B, d, k) in float32 at least."""
    if probabilities.ndim != 3 or not probabilities.is_floating_point() or 0 in probabilities.shape[1:]:
        raise ValueError(
            f"probabilities {_described(probabilities)}: expected (B, d, k) floating point, k for each of d digits; "
            "use logits.unflatten(-1, (d, k)).softmax(-1)"
        )
    return probabilities.to(torch.promote_types(probabilities.dtype, torch.float32))


def _check_labels(labels: Tensor, batch: int, num_classes: int) -> None:
    if labels.shape != (batch,) or labels.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"labels {_described(labels)}: expected ({batch},) int64, a class for each sample")
    if num_classes < 1:
        raise ValueError(f"num_classes={num_classes}: expected at least 1")
    check_range(labels, num_classes)
    if labels.device.type == "cpu" and labels.numel() and labels.min() < 0:
        raise ValueError(
            f"labels holds {int(labels.min())}: expected 0 ... {num_classes - 1}; leave samples without a label out of "
            "the batch"
        )


def _described(tensor: Tensor) -> str:
    return f"has shape {tuple(tensor.shape)} and dtype {tensor.dtype}"

"""There is no usage or perplexity, or it is the mean over batches, which cannot exceed the number of tokens in one.

Seen in: vector-quantize-pytorch 1.32.0 (no output; VQP#63 is open since 2023), VQP#24, SimVQ#3, sonnet#257; per-batch
means in several papers' code.
Avoided since 0.1.0: `CodebookUsage` counts, and describes the histogram of the whole set; positions that were left
out (-1) do not count.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from tests.regressions.faults import both
from vqkit import CodebookUsage

Measure = Callable[[list[Tensor]], tuple[float, float]]


def of_the_set(batches: list[Tensor]) -> tuple[float, float]:
    metric = CodebookUsage(64)
    for indices in batches:
        metric.update(indices)
    report = metric.compute()
    return report["usage"], report["perplexity"]


def mean_over_batches(batches: list[Tensor]) -> tuple[float, float]:
    pairs = [of_the_set([indices]) for indices in batches]
    return sum(usage for usage, _ in pairs) / len(pairs), sum(perplexity for _, perplexity in pairs) / len(pairs)


def padding_is_code_0(batches: list[Tensor]) -> tuple[float, float]:
    return of_the_set([indices.clamp(min=0) for indices in batches])


def check(measure: Measure) -> None:
    tokens = torch.randperm(64).repeat(3)
    padded = [torch.cat([part, torch.full((5,), -1)]) for part in tokens.split(8)]
    usage, perplexity = measure(padded)
    assert usage == 1.0 and abs(perplexity - 64) < 1e-9


test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(
    check, sound=[of_the_set], faulty=[mean_over_batches, padding_is_code_0]
)

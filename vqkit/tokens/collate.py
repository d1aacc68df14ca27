"""Samples of token data sets, joined to a batch."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad


def pad_tokens(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Join samples to a batch, as `collate_fn` of a `DataLoader` or `collate` of `TokenStream`.

    Args:
        samples: at least one, with the same keys, as `TokenShards`, `TokenWindows` and `PackedTokens` give them.

    Returns:
        A dict with their keys. `"indices"` (B, *shape of the largest) int64 have -1 at the end of every axis where a
        sample is smaller; `"mask"`, of that shape, is True where a code is, so also False where a sample has -1; and
        `"shapes"` (B, axes) int64 are the samples' own. Other tensors are stacked, numbers are a tensor, and the rest
        are lists.
    """
    batch = {key: _joined([sample[key] for sample in samples]) for key in samples[0] if key != "indices"}
    if "indices" in samples[0]:
        indices = [sample["indices"] for sample in samples]
        shapes = torch.tensor([sample.shape for sample in indices])
        padded = [_padded(sample, shapes.amax(0)) for sample in indices]
        batch["indices"] = torch.stack(padded)
        batch |= {"mask": batch["indices"] >= 0, "shapes": shapes}
    return batch


def _joined(values: list[Any]) -> Any:
    if isinstance(values[0], Tensor):
        return torch.stack(values)
    return torch.tensor(values) if isinstance(values[0], int) else values


def _padded(sample: Tensor, shape: Tensor) -> Tensor:
    missing = (shape - torch.tensor(sample.shape)).tolist()
    return pad(sample, [size for end in reversed(missing) for size in (0, end)], value=-1) if any(missing) else sample

"""What processes decide together."""

import torch
import torch.distributed as dist

from vqkit.distributed import is_distributed


class Ranks:
    """Decisions of all ranks, over a group of the hosts' processors: a step that asks waits for no device.

    All ranks make it, and ask it, at the same places.
    """

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo") if is_distributed() else None

    def any(self, here: bool) -> bool:
        """Whether it holds on any rank."""
        if self._group is None:
            return here
        answer = torch.tensor(here, dtype=torch.int32)
        dist.all_reduce(answer, dist.ReduceOp.MAX, group=self._group)
        return bool(answer)

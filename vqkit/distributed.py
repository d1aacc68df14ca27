"""Sums, gathered rows and random numbers that are the same on all ranks of a data-parallel run.

Everything is decided when a function is called, so it does not matter when the process group was created; with one
process, or none initialized, each function does what it says without communication. Every rank must call each function:
all of them enter the same collectives with the same shapes, whatever their own batch holds.
"""

import torch
from torch import Tensor

from vqkit.precision import widest_dtype

_GOLDEN = -0x61C8864680B583EB  # 2^64 / golden ratio, as a signed number
_LAST = torch.iinfo(torch.int64).max


def is_distributed() -> bool:
    """Whether there is a process group of more than one rank at this moment."""
    group = torch.distributed
    return group.is_available() and group.is_initialized() and group.get_world_size() > 1


def rank() -> int:
    """Index of this process, 0 without a process group."""
    return torch.distributed.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Number of processes, 1 without a process group."""
    return torch.distributed.get_world_size() if is_distributed() else 1


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum over all ranks, as a new tensor; without gradient.

    Args:
        tensor: any shape, the same on every rank.
    """
    total = tensor.detach().clone(memory_format=torch.contiguous_format)
    if is_distributed():
        torch.distributed.all_reduce(total)
    return total


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Sum over all ranks, with gradient: that of a loss of the sum is, averaged over ranks as DistributedDataParallel
    does, what one process with the joined batch would have.

    Args:
        tensor: any shape, the same on every rank.
    """
    return _SumOverRanks.apply(tensor) if is_distributed() else tensor


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, tensor: Tensor) -> Tensor:
        return all_reduce_sum(tensor)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return all_reduce_sum(gradient)


def logsumexp_over_ranks(values: Tensor) -> Tensor:
    """Log of the sum over ranks of exp(values), the same on every rank and without underflow; without gradient.

    Args:
        values: any shape, the same on every rank; -inf where a rank has nothing.
    """
    return values if not is_distributed() else _all_gather(values.detach()).logsumexp(0)


def gather_rows(rows: Tensor) -> Tensor:
    """The rows of all ranks one after another, in the order of ranks; for initialization, as it waits for the device.

    Args:
        rows: (N, ...); N may differ between ranks and be 0, the other sizes and the dtype may not differ.

    Returns:
        (sum of all N, ...), the same on every rank; `rows` itself with one process.
    """
    if not is_distributed():
        return rows
    sizes = [int(size) for size in _all_gather(torch.tensor([rows.shape[0]], device=rows.device))]
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: rows.shape[0]] = rows.detach()
    return torch.cat([part[:size] for part, size in zip(_all_gather(padded), sizes, strict=True)])


def from_first_rank(tensor: Tensor) -> Tensor:
    """Rank 0's tensor, on every rank: for what all ranks computed from the same data, but perhaps rounded differently.

    Args:
        tensor: any shape, the same on every rank.
    """
    if is_distributed():
        tensor = tensor.detach().clone(memory_format=torch.contiguous_format)
        torch.distributed.broadcast(tensor, 0)
    return tensor


def counter_random(positions: Tensor, *, seed: int | Tensor, step: int | Tensor) -> Tensor:
    """Uniform random numbers that are a function of (seed, step, position): the same on any rank, device and resume.

    Args:
        positions: any shape, int64.
        seed: chooses the sequence.
        step: chooses an independent draw of the sequence; an int or a () int64 tensor, as is `seed`.

    Returns:
        float64 in [0, 1), shape of `positions`; float32 on devices without float64, the same numbers cut off after 24
        bits.

    Source: splitmix64, Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"
    (https://doi.org/10.1145/2660193.2660195).
    """
    bits, dtype = _counter_hash(positions, seed, step).bitwise_and((1 << 53) - 1), widest_dtype(positions.device)
    if dtype == torch.float32:
        return (bits >> 29).to(dtype) * 2.0**-24
    return bits.to(dtype) * 2.0**-53


def open_uniform(positions: Tensor, *, seed: int | Tensor, step: int | Tensor) -> Tensor:
    """`counter_random` in the open interval (0, 1), so that its logarithms are finite."""
    numbers = counter_random(positions, seed=seed, step=step)
    width = torch.finfo(numbers.dtype).eps
    # In the middle of 2^52 intervals, 2^23 in float32: neither 0 nor 1 can come out.
    return (numbers / width).floor() * width + width / 2


def shared_rows(
    rows: Tensor, valid: Tensor, *, count: int, seed: int | Tensor, step: int | Tensor
) -> tuple[Tensor, Tensor]:
    """Draws rows without replacement from the batch of all ranks; every rank gets the same ones, in the same order.

    The draw equals that of one process which holds the batches one after another in the order of ranks. Each row's key
    is a hash of its position in that joined batch, and the rows with the smallest keys are drawn: only keys and drawn
    rows are sent, and nothing waits for the device.

    Args:
        rows: (N, D); N may differ between ranks and be 0. Rows that are not valid may hold anything.
        valid: (N,) bool, which rows may be drawn.
        count: how many rows to draw, at least 1; the same on every rank, as are `seed` and `step`.
        seed: chooses the sequence of draws.
        step: chooses the draw.

    Returns:
        rows (count, D), zero where there were too few valid ones, and filled (count,) bool, False there.

    Raises:
        ValueError: `count` is below 1.
    """
    if count < 1:
        raise ValueError(f"count is {count}, expected at least 1; skip the call when no row is wanted.")
    with torch.no_grad():
        number = rows.shape[0]
        positions = torch.arange(number, device=rows.device) + _first_position(number, rows.device)
        keys = _counter_hash(positions, seed, step).bitwise_and(_LAST)
        keys, chosen = torch.topk(torch.where(valid, keys, _LAST), min(count, number), largest=False)
        padding = count - keys.shape[0]
        keys = torch.cat([keys, keys.new_full((padding,), _LAST)])
        chosen = torch.cat([chosen, chosen.new_zeros(padding)])
        drawn, slots = torch.topk(_all_gather(keys).flatten(), count, largest=False, sorted=True)
        filled = drawn < _LAST
        mine = filled & (slots // count == rank())
        candidates = rows if number else rows.new_zeros(1, *rows.shape[1:])
        own = torch.where(mine[:, None], candidates[chosen[slots % count]], 0)
        sent = own.to(torch.promote_types(own.dtype, torch.float32))  # each row has one owner: the sum is exact
        return all_reduce_sum(sent).to(rows.dtype), filled


def joined_positions(number: int, device: torch.device) -> Tensor:
    """(number,) int64: the places of this rank's rows in the joined batch, that of all ranks one after another.

    Args:
        number: how many rows this rank has; ranks may differ.
        device: of the rows.
    """
    return torch.arange(number, device=device) + _first_position(number, device)


def best_rows(scores: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Of the rows that the ranks propose for each of K places, the one with the highest score, on every rank.

    Args:
        scores: (K,) floating point; -inf where this rank proposes nothing. The first rank wins a tie.
        rows: (K, D) finite.

    Returns:
        rows (K, D), zero where no rank proposed one, and found (K,) bool, False there.
    """
    gathered = _all_gather(scores)
    winner = gathered.argmax(dim=0)  # the first, among equals
    found = (gathered > -torch.inf).any(dim=0)
    own = torch.where((found & (winner == rank())).unsqueeze(-1), rows, 0)
    return all_reduce_sum(own), found  # each place has one owner: the sum is exact


def _all_gather(tensor: Tensor) -> Tensor:
    """(...) on each rank -> (world size, ...)."""
    if not is_distributed():
        return tensor[None]
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    torch.distributed.all_gather(parts, tensor.contiguous())
    return torch.stack(parts)


def _first_position(number: int, device: torch.device) -> Tensor:
    """Index of this rank's first row in the joined batch, a () int64 tensor."""
    sizes = _all_gather(torch.full((), number, dtype=torch.int64, device=device))
    return sizes[: rank()].sum()


def _counter_hash(positions: Tensor, seed: int | Tensor, step: int | Tensor) -> Tensor:
    """64 mixed bits as int64, distinct for distinct positions; the arithmetic wraps around."""
    key = _mix(_scalar(seed, positions.device) * _GOLDEN)
    key = _mix(key + _scalar(step, positions.device) * _GOLDEN)
    return _mix(key + positions * _GOLDEN)


def _scalar(value: int | Tensor, device: torch.device) -> Tensor:
    """() int64 on the device; filled there, since a copy from the host would wait for it."""
    return value if isinstance(value, Tensor) else torch.full((), value, dtype=torch.int64, device=device)


def _mix(bits: Tensor) -> Tensor:
    """The finalizer of splitmix64; `>>` of int64 keeps the sign, hence the masks."""
    bits = (bits ^ ((bits >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    bits = (bits ^ ((bits >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return bits ^ ((bits >> 31) & 0x1FFFFFFFF)

"""The plain form of the context-mixing coder: what `kernels/native/mixing.cpp` computes, in Python's integers.

Every constant and every rounding is in the format of the files: a change needs another number of the coder.
"""

from collections.abc import Sequence
from itertools import chain, product, repeat
from operator import mul
from typing import NamedTuple

LIMIT = 2047
"""Largest logit, in 1/256."""
LARGEST_TABLE = 22
"""Bits of the number of slots for histories, 8 bytes each."""
_NEIGHBOURS = 4
_AGREEMENTS = 3**_NEIGHBOURS
_NODE_DEPTH = 8  # above it each node has weights of its own
_LARGEST_WEIGHT = 2**20
_MULTIPLIER = 0x9E3779B97F4A7C15
_NODE_MULTIPLIER = 0xD6E8FEB86659FD93
_WORD = 2**64 - 1
_HISTORY = 15  # zeros and ones that a slot counts


class Plan(NamedTuple):
    """What is looked at to predict an index.

    Attributes:
        size: K, codes to choose from.
        shape: of the packet: time, rows, columns.
        neighbours: steps to cells that came before, over the three axes; at most four.
        contexts: of each the sources, numbers of neighbours or 4 and 5 for the coarser levels, and how many bits of
            each neighbour count.
    """

    size: int
    shape: tuple[int, int, int]
    neighbours: tuple[tuple[int, int, int], ...]
    contexts: tuple[tuple[tuple[int, int], ...], ...]

    def numbers(self) -> list[int]:
        """All in one list, as the compiled form takes it."""
        flat = [self.size, *self.shape, len(self.neighbours), *(step for steps in self.neighbours for step in steps)]
        flat.append(len(self.contexts))
        for sources in self.contexts:
            flat += [len(sources), *(number for source in sources for number in source)]
        return flat


def encode(ranks: Sequence[int], coarser: Sequence[Sequence[int]], plan: Plan) -> bytes:
    """Ranks as bytes.

    Args:
        ranks: of each cell, in row-major order, 0 ... K - 1.
        coarser: of each cell, the indices of two coarser levels there, -1 where there are none.
        plan: shape and contexts.
    """
    model, coder = _Model(plan, coarser), _Encoder()
    for cell, rank in enumerate(ranks):
        low, high = 0, plan.size
        model.enter(ranks, cell)
        while high - low > 1:
            middle = (low + high) // 2
            bit = int(rank >= middle)
            coder.push(bit, model.predict(middle))
            model.learn(bit)
            low, high = (middle, high) if bit else (low, middle)
    return coder.finish()


def decode(data: bytes, coarser: Sequence[Sequence[int]], plan: Plan) -> tuple[list[int], int]:
    """The ranks, and how many bytes they can take at most."""
    model, coder = _Model(plan, coarser), _Decoder(data)
    ranks: list[int] = []
    steps, rows, columns = plan.shape
    for cell in range(steps * rows * columns):
        low, high = 0, plan.size
        model.enter(ranks, cell)
        while high - low > 1:
            middle = (low + high) // 2
            bit = coder.pop(model.predict(middle))
            model.learn(bit)
            low, high = (middle, high) if bit else (low, middle)
        ranks.append(low)
    return ranks, coder.position


def _squash_table() -> list[int]:
    """The logistic function of -LIMIT ... LIMIT, in 1/65536."""
    rising, power = [], 2**31
    for _ in range(LIMIT + 1):
        rising.append(2**47 // (2**31 + power))
        power = power * 2139111402 >> 31  # exp(-1/256)
    return [65536 - value for value in reversed(rising[1:])] + rising


def _stretch_table() -> list[int]:
    """The logit of (i + 1/2) / 4096."""
    logits, logit = [], -LIMIT
    for place in range(4096):
        while logit < LIMIT and _SQUASH[logit + LIMIT] < 16 * place + 8:
            logit += 1
        logits.append(logit)
    return logits


_SQUASH = _squash_table()
_STRETCH = _stretch_table()
_STEPS_OF_SLOTS = [131072 // (2 * seen + 3) for seen in range(31)]
_STEPS_OF_HISTORIES = [65536 // (seen + 5) for seen in range(256)]
_STEPS_OF_AGREEMENTS = [131072 // (2 * seen + 3) for seen in range(256)]
_STEPS_OF_WEIGHTS = [80 + 48000 // (100 + 3 * seen) for seen in range(256)]


class _Model:
    """The probability of each decision, from all before it."""

    def __init__(self, plan: Plan, coarser: Sequence[Sequence[int]]) -> None:
        self.plan, self.coarser = plan, coarser
        width = (plan.size - 1).bit_length()
        count = len(plan.contexts)
        steps, rows, columns = plan.shape
        touched = steps * rows * columns * width * count
        self.table_bits = min(max((touched - 1).bit_length(), 10), LARGEST_TABLE)
        self.shifts = [[(source, max(width - kept, 0)) for source, kept in sources] for sources in plan.contexts]
        self.slots: dict[int, list[int]] = {}  # tag, probability, seen, zeros, ones, last
        counted = range(_HISTORY + 1)
        histories = [(5 * ones + 2 << 22) // (5 * (zeros + ones) + 4) for zeros, ones in product(counted, counted)]
        self.histories = [[list(histories) for _ in range(2 * width)] for _ in range(count)]
        self.histories_seen = [[[0] * len(histories) for _ in range(2 * width)] for _ in range(count)]
        self.agreements = [2**21] * (width * _AGREEMENTS)
        self.agreements_seen = [0] * len(self.agreements)
        self.first_weights = [49152 // count] * (2 * count) + [6554, 0]
        self.weights: dict[int, list[int]] = {}
        self.weights_seen: dict[int, int] = {}

    def enter(self, ranks: Sequence[int], cell: int) -> None:
        """Go to a cell, of which all before are known."""
        _, rows, columns = self.plan.shape
        column, row, step = cell % columns, cell // columns % rows, cell // columns // rows
        around: list[int] = []
        for back, up, left in self.plan.neighbours:
            inside = step + back >= 0 and row + up >= 0 and 0 <= column + left < columns
            around.append(ranks[cell + (back * rows + up) * columns + left] if inside else -1)
        nearest = next((rank for rank in around if rank >= 0), -1)
        around = [rank if rank >= 0 else nearest for rank in around] + [-1] * (_NEIGHBOURS - len(around))
        self.around = around
        self.agree = [rank >= 0 for rank in around]
        self.keys = []
        for number, sources in enumerate(self.shifts):
            key = (number + 1) * _MULTIPLIER & _WORD
            for source, shift in sources:
                value = (around[source] >> shift) if source < _NEIGHBOURS else self.coarser[cell][source - _NEIGHBOURS]
                key = (key + value + 1) * _MULTIPLIER & _WORD
                key ^= key >> 29
            self.keys.append(key)
        self.node, self.depth = 1, 0

    def predict(self, middle: int) -> int:
        """The probability that the rank is at least `middle`, in 1/65536."""
        depth, node = self.depth, self.node
        self.expected = [
            0 if not agree else 1 + (rank >= middle) for rank, agree in zip(self.around, self.agree, strict=True)
        ]
        first, second, third, fourth = self.expected
        self.place = depth * _AGREEMENTS + first + 3 * second + 9 * third + 27 * fourth
        chosen, from_histories, from_slots = [], [], []
        for key in self.keys:
            found = (key + node) * _NODE_MULTIPLIER & _WORD
            index, tag = found >> 64 - self.table_bits, found >> 20 & 65535
            slot = self.slots.setdefault(index, [tag, 32768, 0, 0, 0, 0])
            if slot[0] != tag:
                slot[:] = tag, 32768, 0, 0, 0, 0  # in place: two contexts may share it
            chosen.append(slot)
        for slot, histories in zip(chosen, self.histories, strict=True):
            _, probability, seen, zeros, ones, last = slot
            known = histories[2 * depth + last][16 * zeros + ones] if seen else 2**21
            from_histories.append(_STRETCH[known >> 10])
            from_slots.append(_STRETCH[probability >> 4])
        agreed = _STRETCH[self.agreements[self.place] >> 10]
        self.chosen = chosen
        self.inputs = [*from_histories, *from_slots, agreed, 256]
        self.sets = self.place, -(node if depth < _NODE_DEPTH else (1 << _NODE_DEPTH) + depth)
        self.mixed = []
        for number in self.sets:
            total = sum(map(mul, self.weights.get(number, self.first_weights), self.inputs)) >> 16
            self.mixed.append(min(max(total, -LIMIT), LIMIT))
        return _SQUASH[(self.mixed[0] + self.mixed[1] >> 1) + LIMIT]

    def learn(self, bit: int) -> None:
        """Take note of the decision that `predict` was asked for."""
        for number, logit in zip(self.sets, self.mixed, strict=True):
            seen = self.weights_seen.get(number, 0)
            step = ((bit << 16) - _SQUASH[logit + LIMIT]) * _STEPS_OF_WEIGHTS[seen] >> 10
            self.weights_seen[number] = min(seen + 1, 255)
            weights = self.weights.get(number, self.first_weights)
            moved = [weight + (value * step + 2048 >> 12) for weight, value in zip(weights, self.inputs, strict=True)]
            if max(moved) > _LARGEST_WEIGHT or min(moved) < -_LARGEST_WEIGHT:
                moved = [min(max(weight, -_LARGEST_WEIGHT), _LARGEST_WEIGHT) for weight in moved]
            self.weights[number] = moved
        target = 2**22 - 1 if bit else 0
        seen = self.agreements_seen[self.place]
        self.agreements[self.place] += (target - self.agreements[self.place]) * _STEPS_OF_AGREEMENTS[seen] >> 16
        self.agreements_seen[self.place] = min(seen + 1, 255)
        for slot, histories, histories_seen in zip(self.chosen, self.histories, self.histories_seen, strict=True):
            _, probability, seen, zeros, ones, last = slot
            if seen:
                row, place = 2 * self.depth + last, 16 * zeros + ones
                known = histories_seen[row][place]
                histories[row][place] += (target - histories[row][place]) * _STEPS_OF_HISTORIES[known] >> 16
                histories_seen[row][place] = min(known + 1, 255)
            probability += (65535 * bit - probability) * _STEPS_OF_SLOTS[seen] >> 16
            slot[1] = min(max(probability, 32), 65503)
            slot[2] = min(seen + 1, 30)
            if bit:
                zeros, ones = (zeros + 2) // 2 if zeros > 2 else zeros, min(ones + 1, _HISTORY)
            else:
                zeros, ones = min(zeros + 1, _HISTORY), (ones + 2) // 2 if ones > 2 else ones
            slot[3:] = zeros, ones, bit
        self.agree = [expected == 1 + bit for expected in self.expected]
        self.node = 2 * self.node + bit
        self.depth += 1


class _Encoder:
    """Decisions to bytes: an interval of 32 bits without carries."""

    def __init__(self) -> None:
        self.low, self.high, self.written = 0, 2**32 - 1, bytearray()

    def push(self, bit: int, probability: int) -> None:
        """Code a decision, given the probability of 1 in 1/65536."""
        middle = self.low + ((self.high - self.low) * probability >> 16)
        self.low, self.high = (self.low, middle) if bit else (middle + 1, self.high)
        while (self.low ^ self.high) >> 24 == 0:
            self.written.append(self.high >> 24)
            self.low, self.high = self.low << 8 & 0xFFFFFFFF, self.high << 8 & 0xFFFFFFFF | 255

    def finish(self) -> bytes:
        """The fewest bytes that lead there, where zeros follow the last one."""
        for count in range(5):
            unit = 1 << 32 - 8 * count
            if -(-self.low // unit) * unit <= self.high:
                number = -(-self.low // unit)
                return bytes(self.written + number.to_bytes(count)).rstrip(b"\0")
        raise AssertionError("an interval of 32 bits has a number of four bytes")


class _Decoder:
    """What `_Encoder` wrote."""

    def __init__(self, data: bytes) -> None:
        self.low, self.high, self.rest, self.position = 0, 2**32 - 1, chain(data, repeat(0)), 4
        self.number = 0
        for _ in range(4):
            self.number = self.number << 8 | next(self.rest)

    def pop(self, probability: int) -> int:
        """The next decision."""
        middle = self.low + ((self.high - self.low) * probability >> 16)
        bit = int(self.number <= middle)
        self.low, self.high = (self.low, middle) if bit else (middle + 1, self.high)
        while (self.low ^ self.high) >> 24 == 0:
            self.low, self.high = self.low << 8 & 0xFFFFFFFF, self.high << 8 & 0xFFFFFFFF | 255
            self.number = self.number << 8 & 0xFFFFFFFF | next(self.rest)
            self.position += 1
        return bit

"""Machine code of NVIDIA GPUs as nvdisasm prints it: its instructions, its loops, and what they count for."""

import re
from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from typing import NamedTuple

TENSOR_CORE = {80: r"HMMA", 90: r"HGMMA", 100: r"UTC\w*MMA"}  # by compute capability times ten
SPILLS = ("LDL", "STL")
# What finds the smaller of two numbers or takes one of two; a thread's own, not those of a whole warp (UISETP, ...).
COMPARISONS = (
    *("FMNMX", "FMNMX3", "FSETP", "FSET", "FSEL", "SEL", "ISETP", "IMNMX", "VIMNMX", "VIMNMX3"),
    *("HMNMX2", "HSETP2", "DSETP", "DMNMX"),
)
LINE = re.compile(
    r"^(?:(?P<label>[.$][^\s:]+):|\s+/\*(?P<address>[0-9a-f]{4,})\*/\s+(?P<guard>@!?U?P\w+\s+)?(?P<name>[A-Z][\w.]*)"
    r"(?P<operands>[^;]*);)"
)
TARGET = re.compile(r"`\((\.L\w+)\)")


class Instruction(NamedTuple):
    """One line; `name` includes what follows the first dot, `operation` does not."""

    name: str
    operands: str
    guarded: bool

    @property
    def operation(self) -> str:
        """What is counted."""
        return self.name.partition(".")[0]


class Listing:
    """A kernel's instructions in order, and its loops."""

    def __init__(self, text: str) -> None:
        self.instructions: list[Instruction] = []
        self._places: dict[str, int] = {}
        for line in text.splitlines():
            match = LINE.match(line)
            if match is None:
                continue
            if match["label"]:
                self._places[match["label"]] = len(self.instructions)
            else:
                self.instructions.append(Instruction(match["name"], match["operands"].strip(), bool(match["guard"])))

    def count(self, operations: Iterable[str], places: Iterable[int] | None = None) -> Counter[str]:
        """How often each operation occurs, in a loop or everywhere."""
        wanted = set(operations)
        chosen = range(len(self.instructions)) if places is None else places
        return Counter(name for place in chosen if (name := self.instructions[place].operation) in wanted)

    def matching(self, pattern: str, places: Iterable[int] | None = None) -> list[Instruction]:
        """The instructions whose operation a regular expression describes."""
        chosen = range(len(self.instructions)) if places is None else places
        return [self.instructions[p] for p in chosen if re.fullmatch(pattern, self.instructions[p].operation)]

    def innermost_loops(self, pattern: str) -> list[frozenset[int]]:
        """Loops with an instruction whose operation matches, and no smaller one with such an instruction in them."""
        chosen = [loop for loop in self.loops if self.matching(pattern, loop)]
        return [loop for loop in chosen if not any(other < loop for other in chosen)]

    def outermost_loops(self, pattern: str) -> list[frozenset[int]]:
        """Loops with an instruction whose operation matches that are in no other such loop."""
        chosen = [loop for loop in self.loops if self.matching(pattern, loop)]
        return [loop for loop in chosen if not any(loop < other for other in chosen)]

    @cached_property
    def loops(self) -> list[frozenset[int]]:
        """Natural loops: what a jump back to an instruction that all ways lead through makes run again.

        Not the instructions between the jump and its target: waits stand behind the kernel's end and jump back into the
        middle of a loop, or across several.
        """
        successors = [self._successors(place) for place in range(len(self.instructions))]
        predecessors: list[list[int]] = [[] for _ in successors]
        for place, following in enumerate(successors):
            for other in following:
                predecessors[other].append(place)
        dominators = _dominators(predecessors)
        bodies: dict[int, set[int]] = {}
        for place in _reached(0, successors):  # what runs at all: not the padding behind the end
            for header in successors[place]:
                if dominators[place] >> header & 1:
                    bodies.setdefault(header, set()).update(_reached(place, predecessors, [header]))
        return [frozenset(body) for body in bodies.values()]

    def _successors(self, place: int) -> list[int]:
        name, operands, guarded = self.instructions[place]
        operation = name.partition(".")[0]
        following = [place + 1] if place + 1 < len(self.instructions) else []
        if operation in ("EXIT", "RET"):
            return following if guarded else []
        target = TARGET.search(operands)
        if operation in ("BRA", "CALL") and target:  # a call of a label, not of a function, is a jump
            jump = self._places[target[1]]
            only = not guarded and operands.startswith("`")  # else a predicate stands among the operands
            return [jump] if only or [jump] == following else [*following, jump]
        return following


def _dominators(predecessors: list[list[int]]) -> list[int]:
    """For each instruction the set, as bits, of those that every way to it leads through."""
    everything = (1 << len(predecessors)) - 1
    dominators = [1, *[everything] * (len(predecessors) - 1)]
    changed = True
    while changed:
        changed = False
        for place in range(1, len(predecessors)):
            common = everything
            for other in predecessors[place]:
                common &= dominators[other]
            common |= 1 << place
            changed |= common != dominators[place]
            dominators[place] = common
    return dominators


def _reached(start: int, edges: list[list[int]], found: Iterable[int] = ()) -> set[int]:
    """What the edges lead to from a start, less what is only behind what has been found."""
    found, waiting = set(found), [start]
    while waiting:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            waiting += edges[current]
    return found


def products_of_a_thread(instructions: Iterable[Instruction]) -> int | None:
    """Multiplications that each thread has its part in; None where the instruction does not say its size."""
    total = 0
    for instruction in instructions:
        size = re.search(r"\.(?:(16)(8)(16|8)|(\d+)x(\d+)x(\d+))\b", instruction.name)
        if size is None:
            return None
        rows, columns, depth = map(int, filter(None, size.groups()))
        total += rows * columns * depth // (128 if instruction.operation == "HGMMA" else 32)
    return total

"""Damage: to bytes, to trees of JSON, to the header and the numbers of safetensors files."""

import copy
import json
import random
import struct
from collections.abc import Iterator
from typing import Any

VALUES = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    3.5,
    1e308,
    -1e-308,
    10**7,
    6 * 10**7,
    2**31,
    2**63 - 1,
    2**63,
    2**70,
    10**400,
]
VALUES += ["", "x", "0", "nan", "../x", "/etc/passwd", "\0", "\ud800", [], {}, [[]], [None], {"": None}]
VALUES += [
    {"float": "inf"},
    {"float": "nan"},
    {"float": []},
    {"class_path": "os.system"},
    {"factory": "vqkit.Quantizer"},
]
VALUES += ["vqkit.Quantizer", "vqkit.kernels.native.__main__.X", "this.X", "antigravity.X", "vqkit.saving.config.Path"]
VALUES += [
    {"class_path": name} for name in ("vqkit.kernels.native.__main__.X", "vqkit.Parts", "vqkit.BSQ", "vqkit.bake")
]
"""What takes the place of something in a tree."""


def damaged(content: bytes, rng: random.Random) -> bytes:
    """One to four changes to bytes, most of them in the first kilobyte, where the headers are."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        length = len(data) if rng.random() < 0.5 else min(len(data), 1024)
        start = rng.randrange(length) if length else 0
        stop = min(len(data), start + rng.choice([1, 1, 2, 4, 8, 64]))
        kind = rng.randrange(7)
        if kind == 0 and data:
            data[start] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[start:stop] = rng.randbytes(stop - start)
        elif kind == 2:
            data[start:stop] = bytes([rng.choice([0, 1, 0x7F, 0x80, 0xFF])]) * (stop - start)
        elif kind == 3:
            del data[start:]
        elif kind == 4:
            del data[start:stop]
        elif kind == 5:
            data[start:start] = data[start:stop] * rng.choice([1, 1, 100])
        else:
            data[start:stop] = str(rng.choice(VALUES)).encode("utf-8", "replace")
    return bytes(data)


def places(tree: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to everything in a tree of lists and dictionaries, the tree itself left out."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, item in items:
        yield (*place, key)
        yield from places(item, (*place, key))


def at(tree: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        tree = tree[key]
    return tree


def mutated(tree: Any, rng: random.Random, values: list[Any] = VALUES) -> Any:
    """A copy with one to three changes: something replaced, left out, renamed, or repeated somewhere else."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.randint(1, 3)):
        known = list(places(tree))
        if not known:
            return tree
        place, other = rng.choice(known), rng.choice(known)
        owner, key = at(tree, place[:-1]), place[-1]
        kind = rng.randrange(6)
        if kind <= 2:
            owner[key] = copy.deepcopy(rng.choice(values))
        elif kind == 3:
            del owner[key]
        elif kind == 4:
            owner[key] = copy.deepcopy(at(tree, other))
        elif isinstance(owner, dict):
            owner[rng.choice(["x", "args", "init_args", "class_path", str(key) * 2])] = owner.pop(key)
    return tree


def mutated_json(content: bytes, rng: random.Random) -> bytes:
    """A JSON file with damage to its tree, or to its bytes."""
    if rng.random() < 0.2:
        return damaged(content, rng)
    if rng.random() < 0.01:
        return rng.choice([b"[", b'{"a":']) * 100_000
    return json.dumps(mutated(json.loads(content), rng)).encode()


def mutated_safetensors(content: bytes, rng: random.Random) -> bytes:
    """A safetensors file with damage to its bytes, to its header as JSON, or to its numbers."""
    size = struct.unpack("<Q", content[:8])[0]
    header, data = content[8 : 8 + size], bytearray(content[8 + size :])
    kind = rng.randrange(3)
    if kind == 0:
        return damaged(content, rng)
    if kind == 1:
        tensors = json.loads(header)
        for name in rng.sample(sorted(tensors), min(len(tensors), rng.choice([0, 1]))):
            if "dtype" in tensors[name]:
                tensors[name]["dtype"] = rng.choice(
                    ["I32", "U32", "F32", "BF16", "F8_E5M2", "BOOL", "F64", "I64", "U8"]
                )
        header = json.dumps(mutated(tensors, rng)).encode() if rng.random() < 0.7 else json.dumps(tensors).encode()
    else:
        for _ in range(rng.randint(1, 8)):
            if len(data) >= 8:
                number = rng.choice([struct.pack("<f", x) for x in (float("nan"), float("inf"), -3e38, 1e-40)])
                number = rng.choice([number, rng.randbytes(4), struct.pack("<q", rng.choice([-1, 2**62, -(2**63)]))])
                start = 4 * rng.randrange(len(data) // 4 - 1)
                data[start : start + len(number)] = number
    return struct.pack("<Q", len(header)) + header + bytes(data)

"""Bytes that a compiled program sends between devices, read from its text."""

import dataclasses
import math
import re
from collections import Counter

__all__ = ["Sent", "sent_by"]

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_COLLECTIVE = re.compile(
    r"= (.*?) (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(-start)?\("
)
_LOOP = re.compile(r" while\(.*body=%?([\w.-]+)")
_ROUNDS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_OPERANDS = re.compile(r"\(\(.*?\), ")
_BRANCH = re.compile(r"(?:to_apply|calls|true_computation|false_computation)=%?([\w.-]+)")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
# How many times its bytes each of n devices sends, by ring.
_PASSES = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,
    "collective-permute": lambda n: 1,
}


@dataclasses.dataclass(frozen=True)
class Sent:
    """The collectives and bytes that each device sends in one call of a program.

    Attributes:
        calls: of each kind of collective, loops counted as often as they run.
        wire_bytes: by ring algorithms, from the sizes of results.
    """

    calls: Counter[str]
    wire_bytes: float


def sent_by(program: str) -> Sent:
    """Counts the collectives in the text of a compiled program.

    A loop whose number of rounds the compiler does not know counts once.
    """
    bodies, entry = _computations(program)
    calls: Counter[str] = Counter()

    def count(name: str, times: int) -> float:
        total = 0.0
        for line in bodies.get(name, ()):
            if match := _COLLECTIVE.search(line):
                kind = match[2]
                # Started, a collective names its operands before its results; a sum may not.
                results, nested = _OPERANDS.subn("(", match[1])
                arrays = [_bytes(*array) for array in _ARRAY.findall(results)]
                twice = match[3] and not nested and kind != "all-reduce"
                size = arrays[-1] if twice else sum(arrays)
                calls[kind] += times
                total += times * size * _PASSES[kind](_group_size(line))
            elif loop := _LOOP.search(line):
                rounds = _ROUNDS.search(line)
                total += count(loop[1], times * int(rounds[1] if rounds else 1))
            else:
                total += sum(count(inner, times) for inner in _BRANCH.findall(line))
        return total

    wire_bytes = count(entry, 1)
    return Sent(calls, wire_bytes)


def _computations(program: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation by name, and the name of the first one to run."""
    bodies: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in program.splitlines():
        if head := _HEAD.match(line):
            lines = bodies[head[2]] = []
            entry = head[2] if head[1] else entry
        else:
            lines.append(line)
    return bodies, entry


def _bytes(kind: str, shape: str) -> int:
    return _BYTES.get(kind, 4) * math.prod(int(size) for size in shape.split(",") if size)


def _group_size(line: str) -> int:
    """Devices that take part: of `{{0,1},{2,3}}`, `[4,2]<=[8]` or `mesh['a'=4,'b'=2] {'b'}`."""
    if named := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", line):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", named[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", named[2]))
    if tiled := re.search(r"replica_groups=\[(\d+),(\d+)\]", line):
        return int(tiled[2])
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    return len(listed[1].split(",")) if listed else 2

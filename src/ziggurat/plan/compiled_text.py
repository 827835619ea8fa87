"""The collectives of a compiled program, read from its HLO text.

Every instruction counts as often as its computation runs: the bodies of loops by their trip count,
which for a scan is the constant that the loop's condition compares with. On TPU a reduce-scatter is
written as an all-reduce inside a computation called ``all-reduce-scatter``, and what crosses slices
as a ``send`` to the host, marked as a transfer of the multi-slice runtime.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ziggurat.plan.fabric import FACTORS, Collective, Fabric

_HEADER = re.compile(r"^(ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{\s*$")
_COLLECTIVE = re.compile(
    r"^\s+(?:ROOT )?%?[\w.\-]+ = (?P<type>.*?) (?:ragged-)?"
    r"(?P<kind>all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)"
    r"(?P<start>-start)?\((?P<rest>.*)$"
)
_TRANSFER = re.compile(
    r"^\s+(?:ROOT )?%?[\w.\-]+ = \((?P<type>\w+\[[\d,]*\]).* send\("
    r'.*_xla_megascale_transfer_type="(?P<kind>\w+)"'
)
_CALLED = re.compile(r"(?:calls|body|to_apply|called_computations)=\{?%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-]+)")
_WHILE = re.compile(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_TRIPS = re.compile(r'known_trip_count"?:\{"?n"?:"?(\d+)')
_ARRAY = re.compile(r"\b(pred|[su]\d+|bf16|f\d+\w*|c64|c128)\[([\d,]*)\]")
_CONSTANT = re.compile(r"%?([\w.\-]+) = s32\[\]\S* constant\((\d+)\)")
_COMPARE = re.compile(r" compare\(([^)]*)\), direction=(LT|LE)")


class Text(NamedTuple):
    """Text of a compiled program: lines of each computation, and the entry computation."""

    computations: dict[str, list[str]]
    entry: str


def parse(text: str) -> Text:
    """Split a compiled program's text into computations."""
    computations: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            lines = computations.setdefault(header["name"], [])
            entry = header["name"] if line.startswith("ENTRY") else entry
        elif line.startswith(" "):
            lines.append(line)
    return Text(computations, entry)


def executions(text: Text) -> dict[str, float]:
    """How often each computation runs in one call of the program."""
    counts = dict.fromkeys(text.computations, 0.0)

    def visit(name: str, times: float) -> None:
        if name not in counts:
            return
        counts[name] += times
        for line in text.computations[name]:
            for called, trips in _calls(text, line):
                visit(called, times * trips)

    visit(text.entry, 1.0)
    return counts


def collectives(text: str, fabric: Fabric) -> list[Collective]:
    """Every collective of a compiled program, equal ones gathered.

    Args:
        text: ``compiled.as_text()``.
        fabric: the devices the program was compiled for.
    """
    program = parse(text)
    counts = executions(program)
    found: dict[tuple, float] = {}
    for name, lines in program.computations.items():
        for line in lines if counts[name] else ():
            transfer = _TRANSFER.match(line)
            if transfer:
                key = _across(transfer, fabric)
                found[key] = found.get(key, 0.0) + counts[name]
            match = _COLLECTIVE.match(line)
            if match is None:
                continue
            kind = match["kind"]
            if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
                kind = "reduce-scatter"
            size = _size(match["type"], kind, bool(match["start"]))
            members = first_group(match["rest"], fabric.size)
            if kind == "reduce-scatter" and match["kind"] == kind:
                size *= len(members)  # the text shows what is left after scattering
            key = (kind, size, tuple(members))
            found[key] = found.get(key, 0.0) + counts[name]
    return [
        Collective(kind=kind, bytes=size, route=fabric.route(members), count=count)
        for (kind, size, members), count in found.items()
        if len(members) > 1
    ]


def first_group(rest: str, devices: int) -> list[int]:
    """The devices of an instruction's first group; all where it names none.

    >>> first_group("..., replica_groups={{0,2},{1,3}}, ...", 4)
    [0, 2]
    >>> first_group("..., replica_groups=[2,2]<=[2,2]T(1,0), ...", 4)
    [0, 2]
    >>> first_group("..., replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_1'}, ...", 4)
    [0, 1]
    >>> first_group("..., source_target_pairs={{0,0},{1,2},{2,1}}", 4)
    [1, 2]
    """
    pairs = re.search(r"source_target_pairs=\{([\d,{}]*)\}", rest)
    if pairs:
        ends = [tuple(map(int, pair)) for pair in re.findall(r"\{(\d+),(\d+)\}", pairs[1])]
        return list(next((pair for pair in ends if pair[0] != pair[1]), ends[0][:1]))
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", rest)
    if listed:
        return [int(number) for number in listed[1].split(",")]
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest)
    if iota:
        numbers = np.arange(devices).reshape([int(n) for n in iota[3].split(",")])
        if iota[4]:
            numbers = numbers.transpose([int(n) for n in iota[4].split(",")])
        return numbers.reshape(int(iota[1]), int(iota[2]))[0].tolist()
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", rest)
    if mesh:
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        along = re.findall(r"'([^']+)'", mesh[2])
        if set(along) <= set(sizes) and math.prod(map(int, sizes.values())) == devices:
            numbers = np.arange(devices).reshape([int(n) for n in sizes.values()])
            part = tuple(slice(None) if name in along else 0 for name in sizes)
            return np.atleast_1d(numbers[part]).ravel().tolist()
    return list(range(devices))


def _across(transfer: re.Match, fabric: Fabric) -> tuple[str, float, tuple[int, ...]]:
    """Kind, bytes and devices of collectives across slices, for one device."""
    kind = transfer["kind"].lower().replace("_", "-")
    kind = kind if kind in FACTORS else "collective-permute"
    members = fabric.across_slices
    size = _size(transfer["type"], kind, started=False)
    return kind, size * len(members) if kind == "all-gather" else size, tuple(members)


def _calls(text: Text, line: str) -> Iterator[tuple[str, float]]:
    loop = _WHILE.search(line)
    if loop:
        known = _TRIPS.search(line)
        trips = float(known[1]) if known else _trips(text.computations.get(loop[1], []))
        yield loop[2], trips
        return
    for match in _BRANCHES.finditer(line):
        for name in re.findall(r"[\w.\-]+", match[1] or match[2]):
            yield name, 1.0
    if "to_apply=" in line and " call(" not in line:
        return  # the scalar function of a reduction
    for match in _CALLED.finditer(line):
        yield match[1], 1.0


def _trips(condition: list[str]) -> float:
    """Trips of a loop that counts up from 0, by its condition; 1 where it is of another form."""
    constants: dict[str, int] = {}
    for line in condition:
        match = _CONSTANT.search(line)
        if match:
            constants[match[1]] = int(match[2])
    for line in condition:
        compare = _COMPARE.search(line)
        if compare:
            for name in re.findall(r"%([\w.\-]+)", compare[1]):
                if name in constants:
                    return float(constants[name] + (compare[2] == "LE"))
    return float(max(constants.values())) if len(constants) == 1 else 1.0


def _size(shape: str, kind: str, started: bool) -> float:
    """Bytes of a result; of an asynchronous start, whose result also holds the operands, those of
    the result proper."""
    sizes = [
        math.prod(int(n) for n in dims.split(",") if n) * _item_bytes(dtype)
        for dtype, dims in _ARRAY.findall(shape)
    ]
    if started and kind == "collective-permute":
        return float(sizes[0])
    if started and kind != "all-reduce" and shape.startswith("(("):
        return float(sum(sizes[len(sizes) // 2 :]))
    if started and kind != "all-reduce":
        return float(max(sizes))
    return float(sum(sizes))


def _item_bytes(dtype: str) -> float:
    if dtype == "pred":
        return 1.0
    bits = re.search(r"\d+", dtype)
    return int(bits[0]) / 8 if bits else 4.0

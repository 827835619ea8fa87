"""A TPU topology by name, ``v5p:4x4x4``: its chips, and their devices without any hardware.

>>> Topology.parse("v5p:4x4x4").chips
64
>>> Topology.parse("v5p:4x4x5")
Traceback (most recent call last):
ziggurat.core.errors.ConfigError: --topology: found 'v5p:4x4x5'; expected a shape that v5p has; \
nearest: v5p:4x4x4 (64 chips) or v5p:4x4x8 (128 chips)
"""

import dataclasses
import itertools
import math
import os
import re
from typing import Any

from ziggurat.core import jax_private
from ziggurat.core.errors import ConfigError, EnvironmentError, did_you_mean
from ziggurat.profile import hardware

_FLAT = ((2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_SMALL_CUBES = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))


@dataclasses.dataclass(frozen=True)
class Generation:
    """A TPU generation, as topology strings name it."""

    chip: hardware.Chip
    """Record of the chip: published figures, name and largest slice."""

    @property
    def name(self) -> str:
        """Name of the generation, such as ``v5p``."""
        return self.chip.generation

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Slices on offer, smallest first: of two axes a short list; of three the small ones and
        all whose axes are multiples of four."""
        if self.chip.torus_axes == 2:
            return list(_FLAT)
        edges = range(4, 49, 4)
        cubes = itertools.combinations_with_replacement(edges, 3)
        large = [cube for cube in cubes if math.prod(cube) <= self.chip.most_chips]
        return sorted([*_SMALL_CUBES, *large], key=math.prod)


GENERATIONS = {chip.generation: Generation(chip) for chip in hardware.CHIPS if chip.generation}
"""Generations that can be planned for; a new one is a row of ``profile.hardware.CHIPS``. v4 is not
here: libtpu describes it without megacore, as two devices a chip, which no machine runs."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """One or more TPU slices of one shape."""

    generation: Generation
    shape: tuple[int, ...]
    slices: int = 1

    @classmethod
    def parse(cls, name: str, slices: int = 1) -> "Topology":
        """Read ``GENERATION:AxB`` or ``AxBxC``.

        Raises:
            ConfigError: an unknown generation or a shape it does not have, with the nearest.
        """
        match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
        if match is None:
            known = ", ".join(GENERATIONS)
            expected = f"GENERATION:SHAPE, one of {known}"
            raise ConfigError("--topology", found=repr(name), expected=expected, fix="v5p:4x4x4")
        generation = GENERATIONS.get(match[1])
        if generation is None:
            known = ", ".join(GENERATIONS)
            hint = did_you_mean(match[1], GENERATIONS)
            raise ConfigError("--topology", found=repr(name), expected=f"one of {known}", fix=hint)
        shape = tuple(int(edge) for edge in match[2].split("x"))
        if tuple(sorted(shape)) not in {tuple(sorted(known)) for known in generation.shapes}:
            near = " or ".join(
                f"{cls(generation, s)} ({math.prod(s)} chips)" for s in _nearest(generation, shape)
            )
            expected = f"a shape that {generation.name} has"
            fix = f"nearest: {near}"
            raise ConfigError("--topology", found=repr(name), expected=expected, fix=fix)
        if slices < 1:
            raise ConfigError("--slices", found=slices, expected="1 or more")
        return cls(generation, shape, slices)

    def __str__(self) -> str:
        return f"{self.generation.name}:{'x'.join(map(str, self.shape))}"

    @property
    def chip(self) -> hardware.Chip:
        """Published figures of one chip."""
        return self.generation.chip

    @property
    def chips(self) -> int:
        """Chips of all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def larger(self) -> list["Topology"]:
        """Larger slices of this generation, smallest first."""
        shapes = [s for s in self.generation.shapes if math.prod(s) > math.prod(self.shape)]
        return [dataclasses.replace(self, shape=shape) for shape in shapes]

    def wraps(self, axis: int) -> bool:
        """Whether the chips along an axis form a ring: of three axes where every axis is a multiple
        of four, of two where the axis spans the whole pod of 16."""
        if self.chip.torus_axes == 2:
            return self.shape[axis] == 16
        return all(edge % 4 == 0 for edge in self.shape)

    def devices(self) -> list[Any]:
        """JAX devices of the topology, from libtpu, without hardware; several processes may.

        Raises:
            EnvironmentError: libtpu is missing or refuses.
        """
        # libtpu's lock would let one process plan at a time; and it complains, though a description
        # does not depend on them, when it cannot find the machine's own type and name
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-8")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        from jax.experimental import topologies

        options = {} if self.slices == 1 else {"num_slices": self.slices}
        try:
            _load_libtpu()
            return list(topologies.get_topology_desc(str(self), "tpu", **options).devices)
        except Exception as error:
            line = str(error).strip().partition("\n")[0][:200]
            raise EnvironmentError(
                f"topology {self}",
                found=line,
                expected="a description from libtpu",
                fix='pip install "ziggurat[plan-tpu]"',
            ) from error


def _load_libtpu() -> None:
    """Load libtpu before JAX does, which would also register its profiler: with no TPU that brings
    the process down as soon as anything is profiled in it, on whatever device."""
    import libtpu

    if not jax_private.plugin_loaded("tpu"):
        jax_private.load_plugin("tpu", libtpu.get_library_path())


def _nearest(generation: Generation, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The largest slice that is not larger, and the smallest that is."""
    chips, known = math.prod(shape), generation.shapes
    same = [s for s in known if len(s) == len(shape)]

    def distance(known_shape: tuple[int, ...]) -> float:
        pairs = zip(sorted(known_shape), sorted(shape), strict=False)
        return sum(abs(math.log(a / b)) for a, b in pairs if b)

    below = [s for s in same or known if math.prod(s) <= chips]
    above = [s for s in same or known if math.prod(s) > chips]
    found = [min(part, key=distance) for part in (below, above) if part]
    return found or known[:1]

"""Planning: will a run fit a TPU topology, how fast is it, what does it cost, which layout is best?

No TPU is needed: the run's real training step is traced and, unless only the analytic model is
asked, compiled ahead of time by libtpu. ``work`` counts FLOPs and traffic in the jaxpr,
``compiled_text`` the collectives of the compiled program, ``analytic`` both memory and collectives
from shapes and shardings, ``fabric`` and ``estimate`` turn them into seconds, ``search`` ranks
layouts. The step comes in as an argument, so that any jitted function can be planned:

>>> from ziggurat.plan import Topology
>>> Topology.parse("v5e:2x4").chip.hbm_bytes // 2**30
16

The package is callable: ``ziggurat.plan(run, topology)`` is :func:`ziggurat.api.planning.plan`.
"""

from ziggurat.core import lazy
from ziggurat.plan.analytic import PlannedWeight
from ziggurat.plan.planning import Plan, Prepared, Subject, prepare
from ziggurat.plan.topology import GENERATIONS, Topology

__all__ = ["GENERATIONS", "Plan", "PlannedWeight", "Prepared", "Subject", "Topology", "prepare"]

lazy.make_callable(__name__)

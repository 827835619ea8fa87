"""One Python controller over many hosts, which may come and go.

``Cluster`` starts a process on each host (subprocesses of this machine, or actors of Ray), runs
functions on them and brings values, output and exceptions back with the host's name. The processes
form one world of ``jax.distributed`` whose coordination service lives in the controller, so that
any of them may die: the others form the next world in place and resume from the newest checkpoint.

>>> from ziggurat.cluster import Cluster
>>> with Cluster(hosts=1) as cluster:
...     cluster.run("math:sqrt", 2.25)
[1.5]
"""

from ziggurat.cluster.cluster import Cluster
from ziggurat.cluster.failures import HostError, HostLostError
from ziggurat.cluster.supervision import ProgramOutcome
from ziggurat.cluster.world import World

__all__ = ["Cluster", "HostError", "HostLostError", "ProgramOutcome", "World"]

"""Engines of a cluster by name; a new one is a class and a line here, or a plugin's entry."""

from collections.abc import Callable

from ziggurat.cluster.engine import ClusterEngine
from ziggurat.core.errors import ClusterError
from ziggurat.core.registry import Registry

ENGINES: Registry[Callable[[str | None], ClusterEngine]] = Registry(
    "cluster engine",
    ClusterError,
    homes={
        "subprocess": "ziggurat.cluster.local_engine:LocalEngine",
        "ray": "ziggurat.cluster.ray_engine:RayEngine",
    },
)
"""Classes, or functions, that make an engine from the address of a cluster that runs already, or
``None``."""

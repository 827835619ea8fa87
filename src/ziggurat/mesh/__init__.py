"""Device meshes and sharding.

Builds a mesh from a config (``data, fsdp, context, tensor, expert, pipeline``; ICI and DCN parts)
and turns logical axis names into shardings. Useful alone:

>>> import jax
>>> from ziggurat import mesh
>>> layout = mesh.build(mesh.MeshConfig(fsdp=-1), jax.devices())
>>> layout.spec(("batch", "sequence", "embed"))
P(('data', 'fsdp', 'expert'), 'context', None)
"""

from ziggurat.mesh.config import AXES, MESH_AXES, DcnConfig, MeshAxis, MeshConfig
from ziggurat.mesh.layout import Layout, abstract, active_layout, active_ways, build, constrain
from ziggurat.mesh.processes import Processes, join

__all__ = [
    "AXES",
    "MESH_AXES",
    "DcnConfig",
    "Layout",
    "MeshAxis",
    "MeshConfig",
    "Processes",
    "abstract",
    "active_layout",
    "active_ways",
    "build",
    "constrain",
    "join",
]

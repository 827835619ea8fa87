"""Engines by name: ``subprocess`` or ``ray``."""

from ziggurat.cluster.engine import ClusterEngine
from ziggurat.core.errors import ClusterError, did_you_mean

ENGINES = ("subprocess", "ray")


def engine_for(name: str, address: str | None) -> ClusterEngine:
    """Build the engine that a name stands for.

    Args:
        name: ``subprocess`` or ``ray``.
        address: of a Ray cluster that runs already.

    Raises:
        ClusterError: unknown name, or an address without Ray.
        EnvironmentError: Ray is not installed.
    """
    if name not in ENGINES:
        raise ClusterError(
            "engine",
            found=repr(name),
            expected=f"one of {', '.join(ENGINES)}",
            fix=did_you_mean(name, ENGINES),
        )
    if name == "ray":
        from ziggurat.cluster.ray_engine import RayEngine

        return RayEngine(address)
    if address is not None:
        raise ClusterError("address of a cluster", found=address, expected="engine ray with it")
    from ziggurat.cluster.local_engine import LocalEngine

    return LocalEngine()

"""Plugins: installed packages that add to Ziggurat's registries.

A package names a module, or a function without arguments, in the entry point group
``ziggurat.plugins``; importing the one or calling the other registers what the package adds::

    [project.entry-points."ziggurat.plugins"]
    my-objectives = "my_package.objectives"

Plugins are loaded when a registry is asked for a name that Ziggurat itself does not have, or for
all of its names. One that fails is left out: a warning names it, and so does the error for a name
that is then missing.
"""

import importlib.metadata
import logging
import threading

_log = logging.getLogger(__name__)
GROUP = "ziggurat.plugins"
_failures: list[str] = []
_lock = threading.RLock()
_loaded = False


def load() -> None:
    """Load all installed plugins, once in a process."""
    global _loaded
    with _lock:
        if _loaded:
            return
        _loaded = True  # a plugin that reads a registry while it loads does not start over
        for point in importlib.metadata.entry_points(group=GROUP):
            try:
                loaded = point.load()
                if callable(loaded):
                    loaded()
            except Exception as error:  # whatever a package of somebody else's raises
                reason = " ".join(str(error).split()) or "no message"
                line = f"plugin {_named(point)}: {type(error).__name__}: {reason}"
                _failures.append(line)
                _log.warning("%s; it is left out", line)


def failures() -> str:
    """Names of the plugins that could not be loaded, with the reasons, in one line; empty if there
    are none."""
    load()
    return "; ".join(_failures)


def _named(point: importlib.metadata.EntryPoint) -> str:
    dist = point.dist
    package = "" if dist is None else f" of {dist.name} {dist.version}"
    return f"{point.name}{package} ({point.value})"

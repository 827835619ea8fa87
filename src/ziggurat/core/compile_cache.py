"""Compiled programs kept on disk, so that a restart does not compile them again.

JAX keys an entry by the program, the compiler's options and versions, and the devices; what stands
here turns its cache on for a stretch of a process and leaves the settings as they were.
"""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

_SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


@contextlib.contextmanager
def keeping_compiled(directory: Path | None, least_s: float = 0.5) -> Iterator[None]:
    """Look up programs in ``directory`` inside this block, and store newly compiled ones there.

    Args:
        directory: made when missing; ``None``: nothing changes.
        least_s: programs that compile faster than this are not kept (seconds).

    >>> import jax, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with keeping_compiled(Path(folder), least_s=0.0):
    ...         _ = jax.jit(lambda x: x * 3 + 1).lower(2.0).compile()
    ...     any(Path(folder).iterdir())
    True
    """
    if directory is None:
        yield
        return
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    before = [getattr(jax.config, name) for name in _SETTINGS]
    directory.mkdir(parents=True, exist_ok=True)
    for name, value in zip(_SETTINGS, (str(directory), least_s, -1)):
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # JAX settles on a directory when it first compiles
    try:
        yield
    finally:
        for name, value in zip(_SETTINGS, before):
            jax.config.update(name, value)
        compilation_cache.reset_cache()


_passing_by, _before = 0, True
_counting = threading.Lock()


@contextlib.contextmanager
def passing_by_compile_cache() -> Iterator[None]:
    """Compile programs inside this block without JAX's compilation cache.

    For programs that are serialised next: XLA:CPU serialises a program that came out of the cache
    without its functions, and who loads that fails at the first call. Blocks may overlap in
    threads; until the last has ended, no thread uses the cache.
    """
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    def switch(to: bool) -> None:
        jax.config.update("jax_enable_compilation_cache", to)
        compilation_cache.reset_cache()  # JAX settles on this too when it first compiles

    global _passing_by, _before
    with _counting:
        if _passing_by == 0:
            _before = getattr(jax.config, "jax_enable_compilation_cache")  # noqa: B009
            switch(False)
        _passing_by += 1
    try:
        yield
    finally:
        with _counting:
            _passing_by -= 1
            if _passing_by == 0:
                switch(_before)

"""The built C++ library for tests: there since the package was installed, else built now."""

import pytest

from ziggurat.kernels.cpu import build, library


def require_library() -> None:
    """Skip where there can be none: no compiler, or a CPU without kernels."""
    if not library.library().path:
        if not build.levels() or build.compiler() is None:
            pytest.skip(library.library().why_not)
        build.build(build.levels()[0], library.writable_directory())
        library.library.cache_clear()
    assert library.library().path

"""A jit for tests, which run a small program once or twice: compiling is what they wait for."""

from collections.abc import Callable
from typing import Any

import jax

OPTIONS = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def quick_jit(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """``jax.jit`` with less effort spent on machine code; compiles in about half the time."""
    return jax.jit(function, compiler_options=OPTIONS, **options)

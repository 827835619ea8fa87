"""Test set-up: eight virtual CPU devices, strict ranks, no accelerator even if one is there, and
programs compiled quickly and once: by whichever test process needs one first, for all others and
for the processes that tests start."""

import collections
import ctypes
import functools
import gc
import logging
import os
import shutil
import sys
import tempfile

import psutil
import pytest

from tests import shape_checks
from tests.compilation import QUICK

os.environ["JAX_PLATFORMS"] = "cpu"
# Flags of the environment come last, so that they win.
os.environ["XLA_FLAGS"] = (
    f"--xla_force_host_platform_device_count=8 {QUICK} {os.environ.get('XLA_FLAGS', '')}"
)
# An array whose rank or type would be promoted silently is an error, also in processes of tests.
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
os.environ.setdefault("JAX_NUMPY_DTYPE_PROMOTION", "strict")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
# Test processes share two cores: PyTorch's threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
shape_checks.install()

# One cache of compiled programs for a whole run, made by the process that began it. JAX reads these
# when it is imported, which the conftest of a folder may do before ``pytest_configure``.
PROGRAMS = None
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    PROGRAMS = tempfile.mkdtemp(prefix="ziggurat-tests-programs-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = PROGRAMS
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


def pytest_configure(config: pytest.Config) -> None:
    if PROGRAMS is not None:
        config.add_cleanup(functools.partial(shutil.rmtree, PROGRAMS, ignore_errors=True))


SHARES = {100: 24, 12: 12, 4: 4}
"""``make test`` runs one in 24 of a test's cases where they are more than a hundred, one in twelve
where they are more than twelve, and one in four where they are more than four."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave most cases of sweeps, such as one over all families, to ``make check``."""
    tests = collections.defaultdict(list)
    for item in items:
        tests[item.nodeid.split("[")[0]].append(item)
    for cases in tests.values():
        share = next((share for many, share in SHARES.items() if len(cases) > many), 1)
        if cases[0].get_closest_marker("sweep"):
            share = len(cases)
        left = [case for number, case in enumerate(cases) if number % share]
        for case in left:
            case.add_marker("slow")


@pytest.fixture(autouse=True)
def _keep_logging():
    """Commands called in this process set up logging; tests after them find it as before."""
    root, ours = logging.getLogger(), logging.getLogger("ziggurat")
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])


MOST_RESIDENT = 3 << 30
"""Bytes of a test process behind which it forgets its compiled programs at the end of a file: three
processes share this project's smallest machine, of 24 GiB, with those that tests start."""


@pytest.fixture(autouse=True, scope="module")
def _bounded_memory():
    yield
    if psutil.Process().memory_info().rss > MOST_RESIDENT:
        sys.modules["jax"].clear_caches()
        gc.collect()
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(autouse=True)
def _flags_of_libtpu(request, monkeypatch):
    """Tests that compile for TPU hide the flags for CPU: libtpu ends the process at one that its
    own XLA does not know. This process's XLA has read them already."""
    if request.node.get_closest_marker("tpu_compile"):
        flags = os.environ["XLA_FLAGS"].split()
        known = [flag for flag in flags if flag not in QUICK.split()]
        monkeypatch.setenv("XLA_FLAGS", " ".join(known))

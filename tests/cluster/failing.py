"""Programs that fail on a host, each in its own way."""

import os
import signal
import time
from pathlib import Path

MISLEADING = "Connection string for the store is empty: Gloo UNAVAILABLE, collective"


class OwnConnectionError(ConnectionError):
    """What a client library of the user's may raise."""


def fail(kind):
    """Raise, or end this process."""
    import jax
    import jax.numpy as jnp

    if kind == "runtime":
        raise RuntimeError(MISLEADING)
    if kind == "connection":
        raise OwnConnectionError(f"{MISLEADING} refused")
    if kind == "os":
        raise OSError(104, f"{MISLEADING} reset by peer")
    if kind == "timeout":
        raise TimeoutError("DEADLINE_EXCEEDED: the store did not answer")
    if kind == "memory":
        raise MemoryError("UNAVAILABLE")
    if kind == "derived":

        class Derived(jax.errors.JaxRuntimeError):
            pass

        raise Derived("UNAVAILABLE: mine")
    if kind == "callback":

        def callback(x):
            raise RuntimeError(MISLEADING)

        shape = jax.ShapeDtypeStruct((), jnp.float32)
        jax.block_until_ready(jax.jit(lambda x: jax.pure_callback(callback, shape, x))(1.0))
    if kind == "device memory":
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while Gloo was idle")
    if kind == "chained":
        try:
            raise ConnectionResetError(MISLEADING)
        except OSError as error:
            raise ValueError("no such shard") from error
    if kind == "collective":
        text = "UNKNOWN: Gloo all-reduce failed: [pair.cc:547] Connection closed by peer"
        raise jax.errors.JaxRuntimeError(text)
    if kind == "exit":
        os._exit(9)
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError(kind)


def steps(world, kind, at, only_once=""):
    """Ten steps that resume from a file, so that steps that were done are not done again; the last
    host fails with step ``at`` done, always or only once."""
    for step in range(10):
        world.report(step, {}, now=True)
        if step == at and world.index == world.count - 1:
            if not only_once:
                fail(kind)
            elif not Path(only_once).exists():
                Path(only_once).touch()
                fail(kind)
        if world.after(step):
            break
    return os.getpid()


def compile_long(world, folder, seconds):
    """The first host compiles program after program; the other, once that continues, is killed."""
    import jax
    import jax.numpy as jnp

    mark, began, number = Path(folder) / "compiling", time.monotonic(), 0
    first = not mark.exists()
    if first and world.index == 1:
        while not mark.exists():
            time.sleep(0.05)
        time.sleep(1.0)
        fail("kill")
    while first and time.monotonic() - began < seconds:
        number += 1

        def program(x, number=number):
            for turn in range(60):
                x = jnp.tanh(x @ x + number + turn)
            return x

        jax.jit(program).lower(jnp.ones((8, 8))).compile()
        mark.touch()
    world.report(0, {}, now=True)
    world.after(0)
    return os.getpid()


def wait_and_fail(world, seconds):
    """Never asks whether to leave, and then fails as if a peer had gone."""
    time.sleep(seconds)
    fail("collective")

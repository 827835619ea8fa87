"""Functions that tests run on hosts."""

import os
import sys
import time


def whoami(word):
    print(f"{word} from {os.getpid()}")
    print("a warning", file=sys.stderr)
    return os.getpid()


def fail_on(index):
    import jax

    if jax.process_index() == index:
        raise ValueError("no such row\nin the table")
    return "fine"


def total():
    """The sum of all devices' numbers, by a collective."""
    import jax
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("all",))
    spread = NamedSharding(mesh, PartitionSpec("all"))
    count = jax.device_count()
    ones = jax.make_array_from_callback((count,), spread, lambda _: np.ones(1))
    whole = NamedSharding(mesh, PartitionSpec())
    return float(jax.jit(lambda x: x.sum(), out_shardings=whole)(ones).addressable_data(0))


def sleep(seconds):
    time.sleep(seconds)


def count_and_hang(world, folder, last):
    """A program that counts with a collective in each step; on its first try one host hangs."""
    from pathlib import Path

    file, tried = Path(folder) / "count", Path(folder) / "tried"
    step = int(file.read_text()) if file.exists() else 0
    began = time.monotonic()
    while step < last and not world.after(step):
        world.report(step, {"step": time.monotonic() - began}, now=True)
        total()
        step += 1
        if world.index == 0:
            file.write_text(str(step))
        elif step == 3 and not tried.exists():
            tried.write_text("yes")
            time.sleep(3600)
    return step, world.count

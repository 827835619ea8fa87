"""Memory figures: a real spike of this process, a real compiled program, devices that report."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np

from ziggurat.profile import memory

MIB = 2**20
SPIKE = """
import numpy, json
from ziggurat.profile import memory
before = memory.host_memory()
numpy.ones(64 * 2**20, numpy.uint8)
print(json.dumps([before, memory.host_memory()]))
"""


def test_peak_remembers_a_freed_spike():
    import json

    # In a child, and after the parent has grown by far more than the spike: the child's peak must
    # be its own.
    ballast = np.ones(600 * MIB, np.uint8)
    out = subprocess.run([sys.executable, "-c", SPIKE], capture_output=True, check=True, text=True)
    before, after = json.loads(out.stdout)
    assert after["host_rss_peak_bytes"] >= before["host_rss_bytes"] + 60 * MIB
    assert after["host_rss_bytes"] < before["host_rss_bytes"] + 32 * MIB
    assert before["host_rss_peak_bytes"] < ballast.nbytes


def test_compiled_memory_counts_donation():
    shape = jax.ShapeDtypeStruct((256, 256), jnp.float32)

    def step(a, b):
        return jnp.tanh(a @ b) @ b

    plain = memory.compiled_memory(jax.jit(step).lower(shape, shape).compile())
    donated = memory.compiled_memory(jax.jit(step, donate_argnums=0).lower(shape, shape).compile())
    size = 256 * 256 * 4
    assert plain["argument_bytes"] == donated["argument_bytes"] == 2 * size
    assert plain["output_bytes"] == size
    assert (plain["alias_bytes"], donated["alias_bytes"]) == (0, size)
    assert plain["peak_bound_bytes"] == 3 * size + plain["temp_bytes"]
    assert donated["peak_bound_bytes"] == 2 * size + donated["temp_bytes"]
    assert 0 < plain["peak_estimate_bytes"] <= plain["peak_bound_bytes"]


class Silent:
    def memory_analysis(self):
        return None


def test_no_account_is_empty():
    assert memory.compiled_memory(Silent()) == {}
    assert memory.device_memory() == {}  # the CPU backend gives no figures


@dataclasses.dataclass
class Device:
    stats: dict | None
    process_index: int = 0

    def memory_stats(self):
        return self.stats


def test_fullest_device_of_this_process():
    devices = [
        Device({"bytes_in_use": 5, "peak_bytes_in_use": 9, "bytes_limit": 100, "pool": 1}),
        Device({"bytes_in_use": 7, "peak_bytes_in_use": 8, "bytes_limit": 90}),
        Device(None),
        Device({"bytes_in_use": 99}, process_index=1),
    ]
    assert memory.device_memory(devices) == {
        "device_bytes_in_use": 7, "device_peak_bytes_in_use": 9, "device_bytes_limit": 90,
    }  # fmt: skip

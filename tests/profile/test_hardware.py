"""The peak table: lookups, agreement with JAX's own TPU table, chips against devices."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.pallas import tpu

from ziggurat.core.errors import ConfigError
from ziggurat.profile import hardware


def test_every_kind_names_one_chip():
    kinds = [kind for chip in hardware.CHIPS for kind in chip.kinds]
    assert len(kinds) == len(set(kinds))
    assert all(kind in chip.kinds for kind in kinds if (chip := hardware.chip(kind)))
    assert None not in map(hardware.chip, kinds)


@pytest.mark.parametrize("chip", hardware.CHIPS, ids=lambda chip: chip.name)
def test_figures_are_plausible(chip):
    assert 100e12 < chip.bfloat16 < 1e16
    assert chip.int8 is None or 1 <= chip.int8 / chip.bfloat16 <= 2.01
    assert chip.float8 is None or 1 <= chip.float8 / chip.bfloat16 <= 2.01
    assert 1e10 < chip.hbm_bytes < 1e12
    # Operations per byte at the roofline's knee: a slipped power of ten would leave this range.
    assert 100 < chip.bfloat16 / chip.hbm_bytes_per_s < 700
    assert 0.05 < chip.ici_bytes_per_s / chip.hbm_bytes_per_s < 0.6


TPU_VERSIONS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "7x",
}
"""JAX's version of a chip, by the device kind that the chip reports."""


@pytest.mark.parametrize("kind", [k for c in hardware.CHIPS for k in c.kinds if "TPU" in k])
def test_tpu_rows_agree_with_jax(kind):
    version = tpu.ChipVersion(TPU_VERSIONS[kind])
    cores = version.num_physical_tensor_cores_per_chip
    theirs, ours = tpu.get_tpu_info_for_chip(version, 1), hardware.chip(kind)
    assert ours is not None
    assert ours.bfloat16 == pytest.approx(cores * theirs.bf16_ops_per_second, rel=0.01)
    if theirs.int8_ops_per_second:
        assert ours.int8 == pytest.approx(cores * theirs.int8_ops_per_second, rel=0.01)
    assert ours.hbm_bytes == pytest.approx(cores * theirs.hbm_capacity_bytes, rel=0.02)
    # Google's page says 2765 GB/s for v5p where JAX has 2460.
    assert ours.hbm_bytes_per_s == pytest.approx(cores * theirs.mem_bw_bytes_per_second, rel=0.13)
    assert ours.devices == (1 if cores == 1 or version.supports_megacore else cores)


def test_peak_takes_dtypes_and_names():
    kind = "NVIDIA H100 80GB HBM3"
    assert hardware.peak(kind, jnp.bfloat16) == hardware.peak(kind, "bf16") == 989.5e12
    assert hardware.peak(kind, jnp.float8_e4m3fn) == hardware.peak(kind, "fp8") == 1979e12
    assert hardware.peak(kind, jnp.dtype("int8")) == 1979e12
    assert hardware.peak("NVIDIA A100-SXM4-40GB", "float8_e5m2") is None
    assert hardware.peak("TPU v5 lite", jnp.bfloat16) == 197e12


def test_unknown_is_none_and_nonsense_is_refused():
    assert hardware.peak(jax.devices()[0].device_kind, "bfloat16") is None
    assert hardware.peak("TPU v5p", "float32") is None
    with pytest.raises(ConfigError, match="did you mean bfloat16"):
        hardware.peak("cpu", "bfloat61")


@dataclasses.dataclass(frozen=True)
class Core:
    id: int
    coords: list[int]
    slice_index: int = 0


def test_two_cores_of_a_chip_count_once():
    cores = [Core(i, [i // 2, 0, 0]) for i in range(4)]
    assert hardware.chip_count(cores) == 2
    assert hardware.chip_count([*cores, Core(9, [0, 0, 0], slice_index=1)]) == 3
    assert hardware.chip_count(jax.devices()) == 8

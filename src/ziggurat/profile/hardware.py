"""Peak figures of accelerators, per chip, keyed by what ``jax.Device.device_kind`` says.

Peaks are the makers' dense figures (no structured sparsity). Nothing is guessed: a device or number
format without a published figure has no peak, and utilisation is then reported as unknown.

Sources, named in each row:

* ``cloud``: Google Cloud TPU documentation, pages v4, v5e, v5p, v6e and tpu7x under
  https://docs.cloud.google.com/tpu/docs; the data-centre network of v5e is 2 x 100 Gbit/s a host
  of 8 chips
* ``jax``: the TPU table of JAX 0.10.2, ``jax/_src/pallas/mosaic/tpu_info.py``
* ``a100``, ``h100``, ``h200``: NVIDIA's data sheets; a figure given "with sparsity" is halved
* ``dgx-b200``, ``hgx``: NVIDIA's DGX B200 data sheet and HGX platform page, divided by 8 GPUs

>>> peak("TPU v6 lite", "bfloat16") / 1e12
918.0
>>> peak("cpu", "bfloat16") is None
True
"""

import dataclasses
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

from ziggurat.core.errors import ConfigError, did_you_mean

_GB, _GIB, _TERA = 10**9, 2**30, 1e12
Tera = float | int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """Published figures of one chip. ``None`` means: not published."""

    name: str
    """Common name, e.g. ``TPU v5p``."""
    kinds: tuple[str, ...]
    """Strings that ``jax.Device.device_kind`` takes for this chip."""
    bfloat16: float
    """Dense bfloat16 matrix peak, FLOP/s."""
    int8: float | None
    """Dense int8 matrix peak, op/s."""
    float8: float | None
    """Dense 8-bit float matrix peak, FLOP/s."""
    float16: float | None
    """Dense float16 matrix peak, FLOP/s."""
    hbm_bytes: int
    """Memory capacity, bytes. Read the live limit from ``profile.memory`` where a device exists."""
    hbm_bytes_per_s: float
    """Memory bandwidth, bytes/s."""
    ici_bytes_per_s: float
    """All inter-chip links of one chip (ICI or NVLink), both directions summed, bytes/s."""
    torus_axes: int
    """Axes of the ICI torus; 0 where a switch joins the chips (NVLink)."""
    dcn_bytes_per_s: float | None = None
    """Share of one chip in its host's data-centre network, one direction, bytes/s."""
    devices: int
    """JAX devices that one chip shows up as (TPU7x: one per TensorCore)."""
    source: str
    """Where the figures come from; see the module's text."""
    generation: str = ""
    """Name of a TPU generation in topologies, such as ``v5p``; empty where none can be planned."""
    most_chips: int = 0
    """Chips of the largest slice of that generation."""
    efficiency: float | None = None
    """Share of the peak that matrix multiplications of a training step reach, fitted on a published
    run; see ``plan.estimate``."""


def _tpu(
    name: str, kinds: tuple[str, ...], tera: tuple[Tera, Tera | None, Tera | None], **rest: Any
) -> Chip:
    """A row; ``tera`` is the bfloat16, int8 and 8-bit float peak in 1e12 operations/s."""
    bfloat16, int8, float8 = tera
    return Chip(
        name=name,
        kinds=kinds,
        bfloat16=bfloat16 * _TERA,
        int8=None if int8 is None else int8 * _TERA,
        float8=None if float8 is None else float8 * _TERA,
        float16=None,
        **{"devices": 1, **rest},
    )


def _gpu(name: str, kinds: tuple[str, ...], tera: tuple[Tera, Tera, Tera | None], **rest) -> Chip:
    chip = _tpu(name, kinds, tera, torus_axes=0, **rest)
    return dataclasses.replace(chip, float16=chip.bfloat16)


CHIPS: tuple[Chip, ...] = (
    # ICI of v4: 2400 Gbit/s one way in the older Cloud TPU table, both ways summed here.
    _tpu(
        "TPU v4", ("TPU v4",), (275, 275, None),
        hbm_bytes=32 * _GIB, hbm_bytes_per_s=1200e9, ici_bytes_per_s=600e9, torus_axes=3,
        source="cloud",
    ),
    _tpu(
        "TPU v5e", ("TPU v5 lite", "TPU v5e"), (197, 393, None),
        hbm_bytes=16 * _GIB, hbm_bytes_per_s=819e9, ici_bytes_per_s=400e9, torus_axes=2,
        dcn_bytes_per_s=3.125e9,
        source="cloud; jax for GiB", generation="v5e", most_chips=256, efficiency=0.84,
    ),
    _tpu(
        "TPU v5p", ("TPU v5", "TPU v5p"), (459, 918, 459),
        hbm_bytes=95 * _GIB, hbm_bytes_per_s=2765e9, ici_bytes_per_s=1200e9, torus_axes=3,
        dcn_bytes_per_s=6.25e9,
        source="cloud; jax for int8", generation="v5p", most_chips=6144, efficiency=0.85,
    ),
    _tpu(
        "TPU v6e", ("TPU v6 lite", "TPU v6e"), (918, 1836, 918),
        hbm_bytes=32 * _GIB, hbm_bytes_per_s=1638e9, ici_bytes_per_s=800e9, torus_axes=2,
        dcn_bytes_per_s=12.5e9,
        source="cloud; jax for GiB", generation="v6e", most_chips=256, efficiency=0.68,
    ),
    _tpu(
        "TPU7x", ("TPU7x",), (2307, None, 4614),
        hbm_bytes=192 * _GIB, hbm_bytes_per_s=7.40e12, ici_bytes_per_s=1200e9, torus_axes=3,
        dcn_bytes_per_s=12.5e9, devices=2,
        source="cloud; jax for bandwidth and for two cores without megacore",
        generation="tpu7x", most_chips=9216,
    ),
    _gpu(
        "NVIDIA A100 40GB", ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB"), (312, 624, None),
        hbm_bytes=40 * _GB, hbm_bytes_per_s=1555e9, ici_bytes_per_s=600e9, source="a100",
    ),
    _gpu(
        "NVIDIA A100 80GB SXM", ("NVIDIA A100-SXM4-80GB",), (312, 624, None),
        hbm_bytes=80 * _GB, hbm_bytes_per_s=2039e9, ici_bytes_per_s=600e9, source="a100",
    ),
    _gpu(
        "NVIDIA A100 80GB PCIe", ("NVIDIA A100 80GB PCIe",), (312, 624, None),
        hbm_bytes=80 * _GB, hbm_bytes_per_s=1935e9, ici_bytes_per_s=600e9, source="a100",
    ),
    _gpu(
        "NVIDIA H100 SXM", ("NVIDIA H100 80GB HBM3",), (989.5, 1979, 1979),
        hbm_bytes=80 * _GB, hbm_bytes_per_s=3.35e12, ici_bytes_per_s=900e9, source="h100",
    ),
    _gpu(
        "NVIDIA H100 PCIe", ("NVIDIA H100 PCIe",), (756.5, 1513, 1513),
        hbm_bytes=80 * _GB, hbm_bytes_per_s=2.0e12, ici_bytes_per_s=600e9, source="h100",
    ),
    _gpu(
        "NVIDIA H200 SXM", ("NVIDIA H200",), (989.5, 1979, 1979),
        hbm_bytes=141 * _GB, hbm_bytes_per_s=4.8e12, ici_bytes_per_s=900e9, source="h200",
    ),
    _gpu(
        "NVIDIA B200", ("NVIDIA B200",), (2250, 4500, 4500),
        hbm_bytes=180 * _GB, hbm_bytes_per_s=8.0e12, ici_bytes_per_s=1800e9,
        source="dgx-b200; hgx for int8",
    ),
)  # fmt: skip
"""Every chip whose figures are known."""

_BY_KIND = MappingProxyType({kind: chip for chip in CHIPS for kind in chip.kinds})
_FORMATS = {"bf16": "bfloat16", "fp16": "float16", "fp8": "float8", "fp32": "float32"}
_UNLISTED = ("float32", "float64", "int4", "float4_e2m1fn")


def chip(device_kind: str) -> Chip | None:
    """Published figures of the chip behind ``device_kind``; None when it is not in the table.

    >>> chip("TPU7x").devices
    2
    """
    return _BY_KIND.get(device_kind)


def peak(device_kind: str, dtype: Any) -> float | None:
    """Peak matrix throughput of one chip, FLOP/s; None when it is unknown (CPU, other devices).

    Args:
        device_kind: ``jax.Device.device_kind``.
        dtype: number format of the matrix operands: a dtype or its name (``bfloat16``, ``bf16``,
            ``float16``, ``int8``, any ``float8_*``). float32 has no published matrix peak, so None.

    Raises:
        ConfigError: ``dtype`` is no number format.

    >>> peak("NVIDIA H100 80GB HBM3", "float8_e4m3fn")
    1979000000000000.0
    """
    name = dtype if isinstance(dtype, str) else _dtype_name(dtype)
    name = _FORMATS.get(name, name)
    name = "float8" if name.startswith("float8_") else name
    listed = ("bfloat16", "float16", "float8", "int8")
    if name not in listed + _UNLISTED:
        known = listed + _UNLISTED
        raise ConfigError(
            "peak: dtype", found=repr(dtype), expected="one of " + ", ".join(known),
            fix=did_you_mean(name, known),
        )  # fmt: skip
    found = chip(device_kind)
    return getattr(found, name) if found is not None and name in listed else None


def chip_count(devices: Sequence[Any]) -> int:
    """Number of chips behind JAX devices: where a chip shows up as two devices it counts once.

    TPU devices are told apart by slice and coordinates; other devices are one chip each.

    >>> import jax
    >>> chip_count(jax.devices()[:1])
    1
    """
    return len({_place(device) for device in devices})


def _place(device: Any) -> tuple:
    if hasattr(device, "coords"):
        return getattr(device, "slice_index", 0), tuple(device.coords)
    return ("id", device.id)


def _dtype_name(dtype: Any) -> str:
    import numpy as np

    try:
        return np.dtype(dtype).name
    except TypeError:
        return str(dtype)

"""Where what is traced now will run, for operations that choose an implementation by it."""

import jax

from ziggurat.mesh import active_layout


def platform() -> str:
    """The platform of the active layout's devices, else JAX's backend.

    >>> platform()
    'cpu'
    """
    layout = active_layout()
    return jax.default_backend() if layout is None else layout.mesh.devices.flat[0].platform


def one_device() -> bool:
    """Whether that is one device, so that XLA has nothing to partition; true outside a layout.

    >>> one_device()
    True
    """
    layout = active_layout()
    return layout is None or layout.mesh.size == 1

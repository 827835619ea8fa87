"""Types of parameters, activations and matmuls."""

import dataclasses

import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Precision:
    """Parameter and compute types; norms, softmax, losses and sums of gradients over tokens stay
    in float32 regardless."""

    param: str = "float32"
    """Type in which parameters are stored and updated."""
    compute: str = "float32"
    """Type of activations and of matmuls."""
    as_stored: bool = False
    """Parameters read from files keep the type they have there; ``param`` is that of others."""

    @property
    def param_dtype(self) -> jnp.dtype:
        return jnp.dtype(self.param)

    @property
    def compute_dtype(self) -> jnp.dtype:
        return jnp.dtype(self.compute)

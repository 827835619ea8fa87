"""Places of a layer where factors of a matrix's inputs fold away: a norm or a projection.

Behind a norm with scale ``g`` (and bias ``b``) inputs divided by ``s`` come from ``g / s`` and
``b / s``. Behind a projection whose outputs enter linearly (the gated MLP's ``up``; values, where
each head has its own) they come from its columns divided by ``s``.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ziggurat.nn.attention import GroupedAttentionConfig
from ziggurat.nn.block import BlockConfig
from ziggurat.nn.mlp import GatedMlpConfig


@dataclasses.dataclass(frozen=True)
class Fold:
    """One place: what is divided, and the matrices whose rows are multiplied."""

    producers: tuple[str, ...]
    """Names of the norm's scale and bias, or of the projection's kernel and bias."""
    consumers: tuple[str, ...]
    """Names of the kernels that read what comes from there, all of them."""
    into_norm: bool
    """Whether a norm comes before, and not a projection."""
    offset: float = 0.0
    """Added to the norm's stored scale."""

    def applied(
        self, weights: Mapping[str, Any], factors: Any
    ) -> tuple[dict[str, Any], Float[np.ndarray, " d"]]:
        """The producers' new values, and the factors by which the consumers' rows are multiplied.

        A norm's new scale is a number of bfloat16, so that a model of that type holds it exactly;
        the factors are those that it then stands for.

        Args:
            weights: the layer's parameters by name, float32.
            factors: positive, one for each input.
        """
        wanted = np.asarray(factors, np.float32)
        first, *rest = self.producers
        stored = np.asarray(weights[first], np.float32)
        if self.into_norm:
            whole = stored + self.offset
            new = np.asarray(jnp.asarray(whole / wanted - self.offset, jnp.bfloat16), np.float32)
            divided = new + self.offset
            kept = (whole != 0) & (divided != 0)
            wanted = np.where(kept, whole / np.where(kept, divided, 1), 1).astype(np.float32)
            made = {first: np.where(kept, new, stored)}
        else:
            made = {first: stored / wanted}
        made |= {name: np.asarray(weights[name], np.float32) / wanted for name in rest}
        return made, wanted


def candidates(
    block: BlockConfig, prefix: str, groups: Sequence[Sequence[str]], names: set[str]
) -> list[Fold]:
    """Folds that a block's config suggests; whether outputs stay the same is for the caller to see.

    Args:
        block: the layer's block.
        prefix: name of its stack.
        groups: names of kernels that read the same inputs, in the order in which they multiply.
        names: of all parameters of the layer.
    """
    found = []
    for branch in block.branches:
        norm = f"{prefix}.{branch}_norm.scale"
        own = [group for group in groups if group[0].startswith(f"{prefix}.{branch}.")]
        if block.norms in ("pre", "sandwich") and norm in names and own:
            found.append(_fold(norm, f"{prefix}.{branch}_norm.bias", own[0], names, block))
    ends = {group[0]: group for group in groups if len(group) == 1}
    for kernel, after in _linear_pairs(block):
        before, behind = f"{prefix}.{kernel}.kernel", f"{prefix}.{after}.kernel"
        if before in names and behind in ends:
            found.append(_fold(before, f"{prefix}.{kernel}.bias", ends[behind], names, None))
    return found


def _fold(
    first: str, bias: str, consumers: Sequence[str], names: set[str], block: BlockConfig | None
) -> Fold:
    producers = (first, bias) if bias in names else (first,)
    offset = 0.0 if block is None else block.norm.offset
    return Fold(producers, tuple(consumers), block is not None, offset)


def _linear_pairs(block: BlockConfig) -> list[tuple[str, str]]:
    """Projections whose outputs reach the next one channel by channel."""
    pairs = []
    mixer = block.mixer
    if isinstance(mixer, GroupedAttentionConfig) and mixer.heads == mixer.kv_heads:
        pairs.append((f"{mixer.name}.value", f"{mixer.name}.out"))
    if isinstance(block.mlp, GatedMlpConfig):
        pairs.append(("mlp.up", "mlp.down"))
    return pairs

"""The dimension glossary: one letter and one logical axis name per dimension, everywhere.

``docs/glossary.md`` is generated from this table and a test keeps the two equal.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Dimension:
    """One dimension of the product's arrays."""

    letter: str
    """Used in shape annotations and einsum strings."""
    axis: str
    """Logical axis name, turned into a mesh axis by the rules of ``ziggurat.mesh``."""
    meaning: str


DIMENSIONS = (
    Dimension("b", "batch", "sequences or images in a batch"),
    Dimension("t", "sequence", "tokens (query positions) in a sequence"),
    Dimension("s", "key_sequence", "key/value positions attended to"),
    Dimension("n", "tokens", "flattened tokens, b times t"),
    Dimension("d", "embed", "model width (residual stream)"),
    Dimension("h", "heads", "query heads"),
    Dimension("k", "kv_heads", "key/value heads"),
    Dimension("g", "query_groups", "query heads per key/value head, h / k"),
    Dimension("c", "head_dim", "channels of one head"),
    Dimension("z", "value_dim", "channels of one value, where they are not the key's"),
    Dimension("f", "mlp", "hidden width of the feed-forward block"),
    Dimension("v", "vocab", "vocabulary entries"),
    Dimension("y", "latent", "channels of a compressed query, key or value"),
    Dimension("l", "layers", "stacked layers"),
    Dimension("e", "experts", "experts of a mixture"),
    Dimension("p", "problems", "problems that completions are sampled for"),
    Dimension("q", "completions", "completions of one problem"),
    Dimension("i", "image_height", "rows of an image or of its latents"),
    Dimension("j", "image_width", "columns of an image or of its latents"),
    Dimension("o", "channels", "channels of an image, of its latents or of a convolution"),
)

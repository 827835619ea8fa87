"""What a family's file of cases holds: an architecture, a config to start from, and switches."""

import dataclasses
from collections.abc import Mapping
from typing import Any

TOKENS = 24
"""Length of every case's input."""
VOCABULARY = 96
"""Token ids of every case's input are below this."""


@dataclasses.dataclass(frozen=True)
class Table:
    """The cases of one family. Dimensions are tiny: a case takes about a second."""

    architecture: str
    """The transformers class; a case may name another under ``architecture``."""
    base: Mapping[str, Any]
    """Arguments of its config class; ``initializer_range`` is also the scale of all matrices."""
    cases: Mapping[str, Mapping[str, Any]]
    """By name, the arguments in which a case differs from ``base``."""
    norms_about: float = 1.0
    """What the scales of norms (every ``weight`` of one dimension) are drawn around."""
    encoder: bool = False
    """Two rows, the second padded; what is stored are hidden states, zero at padding, and after
    them the pooler's vector as one more if there is one; or a head's logits."""
    token_types: bool = True
    """Whether an encoder of texts has token types; its cases have two."""
    texts: bool = True
    """Whether an encoder reads texts."""
    image: tuple[int, int] | None = None
    """Height and width of the images that an encoder reads; with texts, what is stored are vectors
    of both and logits."""
    scale: float | None = None
    """Scale of all matrices, where ``base`` has no ``initializer_range``."""
    masked: bool = True
    """Whether a row of texts is padded, and the padding not seen."""

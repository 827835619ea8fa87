"""Tensors of a checkpoint that a model does not take: each is compared with what stands for it.

A tied output matrix, a causal mask, rotary frequencies and positions repeat what the config says.
A checkpoint in which they say something else is another model, and is read as such or refused.
"""

import dataclasses
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from ziggurat.core.errors import CheckpointError
from ziggurat.models.conversion.weight_names import TensorSource, WeightName
from ziggurat.nn.decoder import DecoderConfig
from ziggurat.nn.rope import NoScaling, frequencies

_log = logging.getLogger(__name__)
_ROWS = 4096
"""Rows compared at once: two pieces of a vocabulary of 128 k are in memory, not two matrices."""
_LAYER = re.compile(r"layers\.(\d+)\.")
NEXT_TOKEN_LAYER = ".eh_proj."
"""Part of a name that each of DeepSeek's layers for further predicted tokens has, and no other."""

Names = Callable[[Any], Iterable[WeightName]]


@dataclasses.dataclass(frozen=True)
class Head:
    """How a checkpoint stores the output matrix."""

    config: Any
    """The family's config, with ``tie_embeddings`` as the tensors have it."""
    names: list[WeightName]
    """The table of names for it."""
    copies: frozenset[str]
    """Tensors that repeat the embedding."""


def stored_head(config: Any, names: Names, tensors: TensorSource) -> Head:
    """Read from the tensors whether the output matrix is the embedding, as transformers 5.23 does.

    Where the config ties them: a checkpoint may hold both with the same values (one is left out),
    both with different values (they are untied, with a warning), or the output matrix alone (it is
    the embedding too).

    Args:
        config: a family's config.
        names: the table of names for a config.
        tensors: the checkpoint.
    """
    if not config.tie_embeddings:
        return Head(config, list(names(config)), frozenset())
    untied = dataclasses.replace(config, tie_embeddings=False)
    theirs = {name.ours: name.theirs for name in names(untied)}
    head, table = theirs["unembedding"], theirs["embedding.table"]
    present = set(tensors)
    if head not in present:
        return Head(config, list(names(config)), frozenset())
    if table not in present:
        renamed = [
            dataclasses.replace(name, theirs=head) if name.theirs == table else name
            for name in names(config)
        ]
        return Head(config, renamed, frozenset())
    same = getattr(tensors, "same", None)  # without reading what may be blocks of integers
    if same(head, table) if same else _same(tensors.read(head), tensors.read(table)):
        return Head(config, list(names(config)), frozenset({head}))
    _log.warning(
        "%s differs from %s: they are read as two matrices, though the config ties them",
        head,
        table,
    )
    return Head(untied, list(names(untied)), frozenset())


def check_dropped(
    dropped: Iterable[str], tensors: TensorSource, decoder: DecoderConfig | None
) -> None:
    """Compare the buffers that a checkpoint holds with what the config makes of them.

    Args:
        dropped: names of tensors that no parameter is read from.
        tensors: the checkpoint.
        decoder: the decoder that the config stands for; None: an encoder.

    Raises:
        CheckpointError: one has other values; or layers beyond the config's number are no layers
            for further predicted tokens.
    """
    further: dict[int, list[str]] = {}
    for name in dropped:
        suffix = next((end for end in CHECKS if name.endswith(end)), None)
        layer = _LAYER.search(name)
        if suffix is not None:
            what, good = CHECKS[suffix]
            if not good(np.asarray(tensors.read(name)), name, decoder):
                raise CheckpointError(
                    f"tensor {name}",
                    found="other values",
                    expected=what,
                    fix="check config.json against the weights",
                )
        elif layer is not None and decoder is not None and int(layer[1]) >= decoder.n_layers:
            further.setdefault(int(layer[1]), []).append(name)
    for number, names in further.items():
        assert decoder is not None
        if not any(NEXT_TOKEN_LAYER in name for name in names):
            raise CheckpointError(
                f"tensor {names[0]}",
                found=f"a layer {number} in the checkpoint",
                expected=f"{decoder.n_layers} layers, as config.json says",
                fix="check config.json against the weights",
            )


def check_copies(
    copies: Mapping[str, str], names: Iterable[WeightName], tensors: TensorSource
) -> frozenset[str]:
    """Tensors that repeat another that is read, by :attr:`Family.copies`.

    Args:
        copies: by the end of a tensor's name, the end of the name of the one that it repeats.
        names: the table of the weights that are read.
        tensors: the checkpoint.

    Raises:
        CheckpointError: one differs from the tensor that is read in its place.
    """
    read, found = [name.theirs for name in names], set[str]()
    for name in tensors:
        end = next((end for end in copies if name.endswith(end)), None)
        original = next((theirs for theirs in read if end and theirs.endswith(copies[end])), None)
        if original is None or name in read:
            continue
        if not _same(tensors.read(name), tensors.read(original)):
            raise CheckpointError(
                f"tensor {name}",
                found=f"other values than in {original}",
                expected="the same: the head's matrix is the embedding",
            )
        found.add(name)
    return frozenset(found)


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two matrices hold equal values; in pieces, as each may fill much of the memory."""
    if a.shape != b.shape:
        return False
    starts = range(0, len(a), _ROWS)
    return all(np.array_equal(a[i : i + _ROWS], b[i : i + _ROWS]) for i in starts)


def _is_frequencies(array: np.ndarray, name: str, decoder: DecoderConfig) -> bool:
    """Inverse wavelengths of the layer, or of any layer; files before transformers 4.38 hold them
    without a scaling that divides positions, and in the type of the weights."""
    layer = _LAYER.search(name)
    numbers = range(decoder.n_layers) if layer is None else [int(layer[1])]
    layers = [decoder.layers[n] for n in numbers if n < decoder.n_layers]
    wide, dim = array.astype(np.float64), 2 * array.size
    layers = [layer for layer in layers if layer.block.mixer.rope_dim == dim]
    for rope in {layer.rope for layer in layers if layer.rope is not None}:
        for one in (rope, dataclasses.replace(rope, scaling=NoScaling())):
            expected, _ = frequencies(one, dim)
            # 2^-7: what bfloat16 keeps of a number; 1e-6: a step of float16 near its smallest
            if np.allclose(wide, expected, rtol=2**-7, atol=1e-6):
                return True
    return False


def _is_table_of_angles(array: np.ndarray, name: str, decoder: DecoderConfig) -> bool:
    """Complex ``exp(i position frequency)`` by position, as Meta's and TorchTitan's code keeps."""
    if array.ndim != 2 or len(array) < 2 or not np.iscomplexobj(array):
        return False
    return _is_frequencies(np.angle(array[1]), name, decoder)


def _is_causal_mask(array: np.ndarray, name: str, decoder: DecoderConfig) -> bool:
    square = array.reshape(array.shape[-2:])
    return bool(np.array_equal(square != 0, np.tril(np.ones(square.shape, bool))))


def _is_minus_infinity(array: np.ndarray, name: str, decoder: DecoderConfig) -> bool:
    return bool(array.size == 1 and float(array.reshape(())) <= -1e4)


def _counts(array: np.ndarray, name: str, decoder: Any) -> bool:
    return bool(np.array_equal(array.reshape(-1), np.arange(array.size)))


CHECKS: Mapping[str, tuple[str, Callable[[np.ndarray, str, Any], bool]]] = {
    "rotary_emb.inv_freq": ("the frequencies of config.json's rope settings", _is_frequencies),
    "freqs_cis": ("the angles of config.json's rope settings", _is_table_of_angles),
    ".attn.bias": ("a causal mask", _is_causal_mask),
    ".attn.masked_bias": ("-10000 or less", _is_minus_infinity),
    ".attention.bias": ("a causal mask", _is_causal_mask),
    ".attention.masked_bias": ("-10000 or less", _is_minus_infinity),
    "embeddings.position_ids": ("0, 1, 2, ...", _counts),
}
"""By the end of a buffer's name: what it must hold, and the test of it."""

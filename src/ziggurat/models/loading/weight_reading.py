"""A language model's parameters from a source of tensors, float or quantised, to their devices."""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

from ziggurat.mesh import Layout
from ziggurat.models.conversion.dropped_tensors import Head, check_dropped
from ziggurat.models.conversion.quantization.checkpoint import quantized_table
from ziggurat.models.conversion.quantization.module import MethodReader
from ziggurat.models.conversion.weight_names import StoredWeight, TensorSource, import_weights
from ziggurat.models.families.family import Family
from ziggurat.models.language_model import LanguageModel, Params
from ziggurat.models.loading.placing import placement
from ziggurat.models.quantized import quantized

_log = logging.getLogger(__name__)

Told = Callable[[str, int, int], None]
"""Called before each weight with its name, how many are read, and all of them."""


def read_model(
    family: Family,
    model: LanguageModel,
    head: Head,
    tensors: TensorSource,
    reader: MethodReader | None,
    layout: Layout | None,
    told: Told | None,
    expand: bool,
    in_files: bool = False,
) -> tuple[LanguageModel, Params]:
    """Read a model's parameters; weights that a method rounded stay quantised.

    Args:
        family: what names and buffers the files have.
        model: the model, of floats.
        head: names of the tensors, and which are copies of others.
        tensors: the files' tensors.
        reader: of the method that rounded the weights; ``None``: they are floats.
        layout: where parameters go; default the first device.
        told: told of the weights, one by one.
        expand: make floats of quantised weights.
        in_files: leave the weights in their files: the parameters are
            :class:`~ziggurat.models.conversion.weight_names.StoredWeight`.

    Returns:
        The model with its weights' types, and the parameters.

    Raises:
        CheckpointError: a tensor is missing, left over, or of another shape; it is named.
    """
    if reader is not None:
        table = quantized_table(reader, head.names, tensors, model, expand=expand)
        if table.expanded and expand:
            _log.warning("%d quantised tensors become floats", table.expanded)
        head, tensors = dataclasses.replace(head, names=table.names), table.tensors
        model = quantized(model, table.formats)
    params = read_weights(family, model, head, tensors, layout, told, in_files=in_files)
    return model.typed_as(params), params


def read_weights(
    family: Family,
    model: LanguageModel,
    head: Head,
    tensors: TensorSource,
    layout: Layout | None,
    told: Told | None = None,
    *,
    in_files: bool = False,
) -> Params:
    """A model's parameters from a source of their tensors, placed shard by shard; arguments as
    those of :func:`read_model`.

    Raises:
        CheckpointError: a tensor is missing, left over, of another shape, or a buffer that
            contradicts the config; it is named.
    """
    dropped: list[str] = []

    def ignored(name: str) -> bool:
        if name in head.copies:
            return True
        if not name.endswith(family.buffers) and not family.ignored(model.config, name):
            return False
        dropped.append(name)
        return True

    place, done = placement(model.shardings(layout) if layout is not None else {}), 0

    def placed(name: str, weight: StoredWeight) -> Any:
        nonlocal done
        if told is not None:
            told(name, done, len(head.names))
        done += 1
        return weight if in_files else place(name, weight)

    params = import_weights(
        head.names,
        tensors,
        model.abstract,
        layers=model.decoder.n_layers,
        ignored=ignored,
        place=placed,
        as_stored=model.precision.as_stored,
    )
    check_dropped(dropped, tensors, model.decoder)
    return params

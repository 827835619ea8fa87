"""Language models written as GGUF files, which llama.cpp reads."""

import logging
from pathlib import Path

import numpy as np

from ziggurat.core.errors import ModelError
from ziggurat.formats.gguf_tokenizer import pieces_of
from ziggurat.models.conversion.quantization.gguf_export import write_gguf
from ziggurat.models.families.family import FAMILIES, family_of
from ziggurat.models.loading.gguf_input import ROPE_DIVISORS
from ziggurat.models.loading.pretrained import Pretrained

_log = logging.getLogger(__name__)


def export_gguf(pretrained: Pretrained, path: Path) -> Path:
    """Write one GGUF file: int8 and int4 weights in blocks (``Q8_0``, ``Q4_0``, ``Q4_1``), other
    matrices as float16, vectors as float32.

    Raises:
        ModelError: the family or a switch has no form there.
        CheckpointError: the tokenizer has none, or the file exists.
    """
    model, tokenizer = pretrained.model, pretrained.tokenizer
    family = family_of(model.config)
    if family.to_gguf is None or family.gguf_names is None:
        able = [name for name in FAMILIES if FAMILIES[name].to_gguf is not None]
        raise ModelError(
            f"export gguf {pretrained.source}",
            found=f"the family {family.name}",
            expected=" or ".join(able),
            fix="export hf, and convert with llama.cpp's convert_hf_to_gguf.py",
        )
    values, divisors = family.to_gguf(model.config)
    plain, around = (tokenizer.encode("a", add_special_tokens=added) for added in (False, True))
    eos = tokenizer.eos_ids[0] if tokenizer.eos_ids else None
    ids = {
        "bos": tokenizer.bos_id,
        "eos": eos,
        "eot": tokenizer.eos_ids[1] if len(tokenizer.eos_ids) > 1 else None,
        "padding": tokenizer.pad_id,
    }
    pieces = pieces_of(
        tokenizer.backend.to_str(),
        size=model.config.vocab_size,
        ids=ids,
        adds=(
            tokenizer.bos_id is not None and around[0] == tokenizer.bos_id != plain[0],
            eos is not None and around[-1] == eos != plain[-1],
        ),
        chat_template=tokenizer.chat_template,
    )
    extra: dict[str, np.ndarray] = {} if divisors is None else {ROPE_DIVISORS: divisors}
    architecture = family.gguf_architectures[0] if family.gguf_architectures else family.name
    counts = write_gguf(
        path,
        architecture,
        values,
        pieces,
        family.gguf_names(model.config),
        pretrained.params,
        extra,
        layers=model.decoder.n_layers,
    )
    shown = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    _log.info("%s: %s", path, shown)
    return path

"""Decoders that GGUF has by a record: each file is read back as the same model.

That llama.cpp computes the same is measured by :mod:`tests.oracle.llama_cpp_models`.
"""

import dataclasses
import functools
import re
from typing import Any

import gguf
import jax
import numpy as np
import pytest
from tests.oracle import llama_cpp_models as oracle

from ziggurat.core.errors import ModelError
from ziggurat.formats import GgufFile
from ziggurat.models import FAMILIES
from ziggurat.models.conversion.gguf_records import RECORDS
from ziggurat.models.families.family import family_for_gguf
from ziggurat.models.loading import pretrained
from ziggurat.models.loading.gguf_output import export_gguf


class TestGgufArchitecture:
    @pytest.mark.parametrize("name", RECORDS)
    def test_a_file_is_read_back_as_the_same_model(self, name, tmp_path):
        made = oracle.model_of(name)
        path = export_gguf(made, tmp_path / "tiny.gguf")
        file = GgufFile(path)
        assert family_for_gguf(file.metadata).name == name
        kinds = {text: kind for kind, text in gguf.MODEL_ARCH_NAMES.items()}
        known = gguf.MODEL_TENSORS[kinds[RECORDS[name].name]]
        forms = {gguf.TENSOR_NAMES[tensor] for tensor in known}
        for tensor in file:
            assert re.sub(r"\.\d+\.", ".{bid}.", tensor).rpartition(".")[0] in forms
        again = pretrained.load(path)
        config: Any = made.model.config
        for field in dataclasses.fields(config):
            found, expected = (getattr(m.model.config, field.name) for m in (again, made))
            if isinstance(expected, float):
                expected = float(np.float32(expected))
            assert field.name == "init_std" or found == expected, field.name
        # scales of norms are float32 there: what an offset adds and takes away rounds by 2^-24
        close = functools.partial(np.testing.assert_allclose, atol=1e-6, rtol=0)
        jax.tree.map(close, again.params, made.params)

    @pytest.mark.parametrize(
        ("name", "change", "message"),
        [
            ("gemma", {"tie_embeddings": False}, "tie_embeddings: found False"),
            ("gemma", {"activation": "silu"}, "activation: found silu"),
            ("gemma2", {"query_scale": 7.0}, "query_scale: found"),
            ("olmo2", {"tie_embeddings": True}, "tie_embeddings: found True"),
            ("phi3", {"head_dim": 32}, "head_dim: found 4 heads of 32, together 128"),
            ("phi3", {"window": 16}, "window: found 16"),
            ("cohere2", {"pattern": ("local", "global")}, "pattern: found"),
            ("starcoder2", {"activation": "silu"}, "activation: found silu"),
        ],
    )
    def test_what_has_no_form_there_is_refused(self, name, change, message):
        plain: Any = oracle.model_of(name).model.config
        config, to_gguf = dataclasses.replace(plain, **change), FAMILIES[name].to_gguf
        assert to_gguf is not None
        with pytest.raises(ModelError, match=f"export gguf: {message}"):
            to_gguf(config)

    def test_the_stored_table_has_every_family(self):
        lines = oracle.STORED.read_text().splitlines()[1:]
        assert {line.split()[0] for line in lines} >= RECORDS.keys()
        assert not [line for line in lines if "Error" in line]

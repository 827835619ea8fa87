"""A real model of sentences: all-MiniLM-L6-v2 bundled, served, and asked by Triton's client."""

import numpy as np
import pytest
from tests.oracle import minilm
from tests.serve.predict.conftest import serving

from ziggurat.models.loading import pretrained_encoder
from ziggurat.models.text_embedder import bundle_parts
from ziggurat.serve.predict import export

httpclient = pytest.importorskip("tritonclient.http")
ROWS, LENGTH = 4, 16


@pytest.mark.slow
@pytest.mark.skipif(minilm.directory() is None, reason=f"needs {minilm.PACKAGE}")
def test_vectors_served_are_the_packages_own(tmp_path):
    encoder = pretrained_encoder.load(minilm.directory())
    fn, params, signature = bundle_parts(encoder)
    ids, wanted = minilm.load()
    tokens, mask = np.zeros((ROWS, LENGTH), np.int32), np.zeros((ROWS, LENGTH), np.int32)
    for row, found in enumerate(ids[:ROWS]):
        tokens[row, : len(found)], mask[row, : len(found)] = found, 1
    short = {"tokens": tokens[:1, :8], "mask": mask[:1, :8]}
    path = tmp_path / "minilm" / "1"
    export(fn, params, signature, path, sizes={"t": (LENGTH,)}, golden=[short], platforms=["cpu"])
    settings = f"[batching]\nmax_batch_size = {ROWS}\nbatch_sizes = [{ROWS}]\n"
    (tmp_path / "minilm" / "model.toml").write_text(settings)
    with serving(tmp_path) as server, httpclient.InferenceServerClient(server.http) as client:
        given = []
        for name, array in (("tokens", tokens), ("mask", mask)):
            given.append(httpclient.InferInput(name, list(array.shape), "INT32"))
            given[-1].set_data_from_numpy(array)
        vectors = client.infer("minilm", given).as_numpy("embedding")
    # Unit vectors, so 1e-5 is far below what any use of them could tell apart.
    np.testing.assert_allclose(vectors, wanted[:ROWS], atol=1e-5)

"""The benchmark's function behind MLServer: ``python ml_server.py PORT GRPC_PORT``.

In one process, since sending tensors to its pool costs more than this function, with its adaptive
batching.
"""

import asyncio
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from function import MAX_ROWS, Padded
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse

MAX_DELAY_S = 0.0005
"""Its batching needs a delay above 0."""


class Runtime(MLModel):
    """KServe v2 in and out."""

    async def load(self) -> bool:
        self.run = Padded()
        return True

    async def predict(self, payload):
        x = NumpyCodec.decode_input(payload.inputs[0]).astype(np.float32, copy=False)
        output = NumpyCodec.encode_output("probabilities", self.run(x))
        return InferenceResponse(model_name=self.name, outputs=[output])


async def serve(port: int, grpc_port: int) -> None:
    from mlserver.cli.serve import load_settings
    from mlserver.server import MLServer

    folder = Path(tempfile.mkdtemp())
    settings = {"host": "127.0.0.1", "http_port": port, "grpc_port": grpc_port}
    settings |= {"parallel_workers": 0, "metrics_endpoint": None, "debug": False}
    model = {"name": "mlp", "implementation": "ml_server.Runtime"}
    model |= {"max_batch_size": MAX_ROWS, "max_batch_time": MAX_DELAY_S}
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(model))
    loaded, models = await load_settings(str(folder))
    await MLServer(loaded).start(models)


if __name__ == "__main__":
    asyncio.run(serve(*map(int, sys.argv[1:])))

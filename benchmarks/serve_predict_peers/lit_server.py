"""The benchmark's function behind LitServe: ``python lit_server.py PORT``.

One worker process, dynamic batching of what waits (without delay, which is fastest here), and the
queue that LitServe recommends for many requests.
"""

import sys

import litserve
import numpy as np
from function import Padded


class Api(litserve.LitAPI):
    """JSON ``{"input": [[...]]}`` to ``{"output": [...]}``."""

    def setup(self, device):
        self.run = Padded()

    def decode_request(self, request):
        return np.asarray(request["input"], np.float32)

    def batch(self, inputs):
        self.rows = [len(x) for x in inputs]
        return np.concatenate(inputs)

    def predict(self, x):
        return self.run(x)

    def unbatch(self, output):
        return np.split(output, np.cumsum(self.rows)[:-1])

    def encode_response(self, output):
        return {"output": output.ravel().tolist()}


if __name__ == "__main__":
    api = Api(max_batch_size=32)
    server = litserve.LitServer(api, accelerator="cpu", fast_queue=True)
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), log_level="error", generate_client_file=False
    )

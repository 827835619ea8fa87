"""Train a small classifier, write it as a bundle, serve it, and ask it over HTTP.

The bundle holds the program for CPU, GPU and TPU, the weights, and recorded inputs and outputs; the
server reads nothing of this file. ``ziggurat serve models --grpc-port 8001`` would serve the same
directory from the command line::

    python examples/bundle_classifier.py
"""

import json
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from prometheus_client import CollectorRegistry

from ziggurat.serve.predict import Predict, export
from ziggurat.serve.server import Server, bind

CLASSES, PIXELS, ROWS = 10, 64, 1024


def images(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy copies of ten random 8x8 pictures, and which picture each one is."""
    pictures = np.random.default_rng(0).random((CLASSES, PIXELS)) < 0.4
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, CLASSES, rows)
    noisy = pictures[labels] + 0.6 * draw.standard_normal((rows, PIXELS))
    return noisy.astype(np.float32), labels


class Classifier(nnx.Module):
    """Two layers; gives probabilities and the most likely class."""

    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(PIXELS, 64, rngs=rngs)
        self.out = nnx.Linear(64, CLASSES, rngs=rngs)

    def logits(self, image: jax.Array) -> jax.Array:
        return self.out(jax.nn.relu(self.hidden(image)))

    def __call__(self, image: jax.Array) -> dict[str, jax.Array]:
        logits = self.logits(image)
        return {"probabilities": jax.nn.softmax(logits), "label": logits.argmax(-1)}


def train(steps: int = 60) -> Classifier:
    """Adam on whole batches."""
    model = Classifier(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    x, y = map(jnp.asarray, images(ROWS, seed=1))

    @nnx.jit
    def step(model: Classifier, optimizer: nnx.Optimizer) -> jax.Array:
        def loss(model: Classifier) -> jax.Array:
            losses = optax.softmax_cross_entropy_with_integer_labels(model.logits(x), y)
            return losses.mean()

        value, gradients = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradients)
        return value

    for number in range(steps):
        value = step(model, optimizer)
        if number % 20 == 0:
            print(f"step {number}: loss {value:.3f}")
    return model


def ask(url: str, image: np.ndarray) -> list[int]:
    """The server's labels, by one request of the protocol."""
    tensor = {"name": "image", "datatype": "FP32", "shape": image.shape, "data": image.tolist()}
    body = json.dumps({"inputs": [tensor], "outputs": [{"name": "label"}]}).encode()
    with urllib.request.urlopen(f"{url}/v2/models/pictures/infer", body) as answer:
        return json.load(answer)["outputs"][0]["data"]


def main() -> None:
    model = train()
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder)
        path = repository / "pictures" / "1"
        export(model, None, "image:FP32[b,64] -> probabilities label", path)
        print("bundle:", ", ".join(sorted(file.name for file in path.iterdir())))
        with Predict(repository) as predict:
            server = Server([predict.part()], bind("127.0.0.1", 0), CollectorRegistry())
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            while not server.started:
                time.sleep(0.01)
            try:
                image, label = images(32, seed=2)
                found = ask(server.url, image)
            finally:
                server.stop()
                thread.join()
    print(f"served: {np.mean(np.array(found) == label):.0%} of new pictures are right")


if __name__ == "__main__":
    main()

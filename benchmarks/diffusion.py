"""Diffusion on digits: what is recognised, and speed against a plain PyTorch loop, interleaved.

Trains ``recipes/digits-flow.toml`` (or takes a run), draws digits by class and asks a classifier
that never saw the model: scikit-learn's support vector machine, trained on one half of the real
digits, whose accuracy on the other half is printed beside. Then the training step of the same DiT
(the same parameters, batch, float32 and AdamW with clipping and an average of the weights) in the
product and in PyTorch, round by round in turn, and the time to draw 64 digits::

    python benchmarks/diffusion.py --rounds 7
    python benchmarks/diffusion.py --run runs/digits-flow   # without training it anew

Starts itself anew with huge pages, as ``ziggurat train`` does; PyTorch has them too then. Writes
``benchmarks/results/diffusion.json``. Needs torch for the second part (``make test-oracle``
installs it).
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np

from ziggurat.core import config, host_memory
from ziggurat.models.diffusion import Sampling
from ziggurat.models.loading import pretrained_pipeline
from ziggurat.train.config import RunConfig

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "digits-flow.toml"
RESULT = Path(__file__).parent / "results" / "diffusion.json"
PER_CLASS = 100


def recognition(run: Path, sampling: Sampling, guidance: float) -> dict[str, Any]:
    """Share of drawn digits that an independent classifier takes for their class."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    from sklearn.svm import SVC

    pixels, labels = load_digits(return_X_y=True)
    seen, held, seen_labels, held_labels = train_test_split(
        pixels, labels, test_size=0.5, random_state=0, stratify=labels
    )
    classifier = SVC(gamma=0.001).fit(seen, seen_labels)
    pipeline = pretrained_pipeline.load(run)
    draw = jax.jit(pipeline.draw(sampling, guidance))
    wanted = np.repeat(np.arange(10, dtype=np.int32), PER_CLASS)
    drawn = np.asarray(draw(pipeline.weights, wanted, np.arange(len(wanted), dtype=np.int32)))
    found = classifier.predict(np.round(drawn.reshape(len(drawn), -1) * 16))
    by_class = {str(digit): float(np.mean(found[wanted == digit] == digit)) for digit in range(10)}
    nearest = np.min(
        np.linalg.norm(drawn.reshape(len(drawn), 1, -1)[:200] * 16 - pixels[None], axis=-1), axis=1
    )
    between = np.linalg.norm(pixels[:200, None] - pixels[None], axis=-1)
    between[np.arange(200), np.arange(200)] = np.inf
    return {
        "classifier": "SVC(gamma=0.001), trained on 898 real digits",
        "classifier_accuracy_on_held_out_real_digits": float(classifier.score(held, held_labels)),
        "drawn": len(drawn),
        "recognised": float(np.mean(found == wanted)),
        "recognised_by_class": by_class,
        "distance_to_the_nearest_real_digit": float(np.median(nearest)),
        "the_same_between_real_digits": float(np.median(between.min(axis=1))),
        "sampler": f"{sampling.method}, {sampling.steps} steps, guidance {guidance:g}",
    }


def ziggurat_step(run: RunConfig) -> tuple[Callable[[], float], int]:
    """One step of the product's own compiled training step, and its parameters."""
    from ziggurat.train.experiment import prepare

    experiment = prepare(run, jax.devices()[:1])
    state = experiment.initial()
    batches = experiment.data.iterate(0)
    compiled = experiment.step.lower(state, experiment.place(next(batches))).compile()  # pyright: ignore
    box = [state]

    def one() -> float:
        box[0], metrics = compiled(box[0], experiment.place(next(batches)))
        return float(metrics["loss"])

    return one, experiment.model.parameter_count


def torch_step(run: Any, compiled: bool) -> tuple[Callable[[], float], int]:
    """The same step as people write it in PyTorch."""
    import torch
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    c, batch = run.model, run.data.batch_size
    model = torch_dit(c)
    average = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
    forward = torch.compile(model) if compiled else model
    pixels, labels = load_digits(return_X_y=True)
    pixels = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1
    labels = torch.tensor(labels)

    def one() -> float:
        rows = torch.randint(0, len(pixels), (batch,))
        image, label = pixels[rows], labels[rows]
        sigma = torch.sigmoid(torch.randn(batch))
        noise = torch.randn_like(image)
        share = sigma[:, None, None, None]
        label = torch.where(torch.rand(batch) < 0.1, c.classes, label)
        said = forward((1 - share) * image + share * noise, sigma * 1000, label)
        loss = torch.nn.functional.mse_loss(said, noise - image)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(average, list(model.parameters()), 0.001)
        return loss.item()

    return one, sum(p.numel() for p in model.parameters())


def torch_dit(c: Any) -> Any:
    """A DiT of the run's sizes, with fused attention."""
    import torch
    from torch import nn

    width, side = c.d_model, c.image_size // c.patch_size

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.modulation = nn.Linear(width, 6 * width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x: Any, condition: Any) -> Any:
            six = self.modulation(nn.functional.silu(condition))[:, None].chunk(6, dim=-1)
            shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = six
            y = nn.functional.layer_norm(x, (width,), eps=1e-6) * (1 + scale) + shift
            heads = self.qkv(y).unflatten(-1, (3, c.n_heads, -1)).permute(2, 0, 3, 1, 4)
            y = nn.functional.scaled_dot_product_attention(*heads)
            x = x + gate * self.out(y.transpose(1, 2).flatten(2))
            y = nn.functional.layer_norm(x, (width,), eps=1e-6) * (1 + mlp_scale) + mlp_shift
            return x + mlp_gate * self.down(nn.functional.gelu(self.up(y), approximate="tanh"))

    class Dit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch = nn.Conv2d(c.channels, width, c.patch_size, c.patch_size)
            self.time = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
            self.classes = nn.Embedding(c.classes + 1, width)
            self.blocks = nn.ModuleList(Block() for _ in range(c.n_layers))
            self.modulation = nn.Linear(width, 2 * width)
            self.out = nn.Linear(width, c.patch_size**2 * c.channels)
            self.register_buffer("at", torch.randn(side * side, width), persistent=False)
            rates = torch.exp(-np.log(10000.0) * torch.arange(128) / 127)
            self.register_buffer("rates", rates, persistent=False)

        def forward(self, x: Any, time: Any, label: Any) -> Any:
            x = self.patch(x).flatten(2).transpose(1, 2) + self.at
            angles = time[:, None] * self.rates
            condition = self.time(torch.cat([angles.cos(), angles.sin()], -1)) + self.classes(label)
            for block in self.blocks:
                x = block(x, condition)
            shift, scale = self.modulation(nn.functional.silu(condition))[:, None].chunk(2, -1)
            x = self.out(nn.functional.layer_norm(x, (width,), eps=1e-6) * (1 + scale) + shift)
            x = x.unflatten(1, (side, side)).unflatten(-1, (c.patch_size, c.patch_size, -1))
            return x.permute(0, 5, 1, 3, 2, 4).reshape(len(x), -1, c.image_size, c.image_size)

    return Dit()


def speed(run: RunConfig, rounds: int, steps: int, peers: bool) -> dict[str, Any]:
    """Images/s of each side, round by round in turn, and ratios with their spread."""
    sides: dict[str, Callable[[], float]] = {}
    sides["ziggurat"], count = ziggurat_step(run)
    if peers:
        for name, compiled in (("torch", False), ("torch_compile", True)):
            sides[name], theirs = torch_step(run, compiled)
            assert theirs == count, (theirs, count)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for one in sides.values():
        for _ in range(3):
            one()
    for _ in range(rounds):
        for name, one in sides.items():
            start = time.perf_counter()
            for _ in range(steps):
                one()
            seconds[name].append((time.perf_counter() - start) / steps)
    batch = run.data.batch_size
    result: dict[str, Any] = {"parameters": count, "batch": batch}
    for name, times in seconds.items():
        result[name] = {
            "images_per_s": batch / statistics.median(times),
            "step_ms": 1000 * statistics.median(times),
        }
        if name != "ziggurat":
            ratios = sorted(theirs / ours for ours, theirs in zip(seconds["ziggurat"], times))
            result[f"ratio_to_{name}"] = {
                "median": statistics.median(ratios),
                "least": ratios[0],
                "most": ratios[-1],
            }
    return result


def latency(run: Path, rounds: int) -> dict[str, Any]:
    """Milliseconds to draw 1 and 64 digits, compiled before."""
    pipeline = pretrained_pipeline.load(run)
    found = {}
    for method, steps in (("euler", 20), ("dpm++", 10)):
        draw = jax.jit(pipeline.draw(Sampling(method=method, steps=steps), 2.0))
        for rows in (1, 64):
            labels = np.arange(rows, dtype=np.int32) % 10
            seeds = np.arange(rows, dtype=np.int32)
            times = []
            for _ in range(rounds + 1):
                start = time.perf_counter()
                jax.block_until_ready(draw(pipeline.weights, labels, seeds))
                times.append(1000 * (time.perf_counter() - start))
            name = f"{method}_{steps}_steps_guided_{rows}_images_ms"
            found[name] = statistics.median(times[1:])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", type=Path, help="a finished run of the recipe")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20, help="steps of a round")
    parser.add_argument("--no-peers", action="store_true", help="without PyTorch")
    arguments = parser.parse_args()
    run = config.load(RunConfig, RECIPE)
    directory = arguments.run
    if directory is None:
        from ziggurat.train.loop import train

        start = time.perf_counter()
        directory = train(run).directory.path
        print(f"trained in {time.perf_counter() - start:.0f} s")
    result: dict[str, Any] = {
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "jax": jax.__version__,
        },
        "recognition": [
            recognition(directory, Sampling(method="euler", steps=20), guidance)
            for guidance in (1.0, 2.0)
        ],
        "sampling": latency(directory, arguments.rounds),
        "training": speed(run.value, arguments.rounds, arguments.steps, not arguments.no_peers),
    }
    print(json.dumps(result, indent=1))
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    host_memory.restart_with_huge_pages()
    main()

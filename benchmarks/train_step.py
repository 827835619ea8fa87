"""Training step on CPU against PyTorch eager and torch.compile, interleaved in one run.

Same architecture (Llama: RMSNorm, rope, SwiGLU, tied head), batch, float32 and AdamW on both sides.
Each has a process of its own, as the user of each would: ours as ``ziggurat train`` starts itself,
with huge pages; torch.compile is measured a second time with them, too. Prints seconds, tokens/s
and the ratio to each peer with its spread, and writes them to
``benchmarks/results/train_step.json`` with the machine's facts::

    python benchmarks/train_step.py --rounds 7

Needs torch and transformers (``make test-oracle`` installs them).
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np

from ziggurat.core import config, host_memory
from ziggurat.kernels.cpu.library import library
from ziggurat.train.ahead_of_time import abstract_step
from ziggurat.train.config import RunConfig
from ziggurat.train.state import initial_state

BATCH, LENGTH, VOCAB, WIDTH, LAYERS, HEADS, HIDDEN = 4, 512, 8192, 288, 6, 6, 768
REST_S = 0.05
"""Until the threads of the one before have stopped waiting for work, which takes a core."""
RESULT = Path(__file__).parent / "results" / "train_step.json"


def ziggurat_step(*overrides: str) -> Callable[[], float]:
    """One step of the product's own compiled training step; returns the loss."""
    from ziggurat import optim
    from ziggurat.models import LanguageModel

    run = config.parse(
        RunConfig,
        f"""
        name = "bench"
        [model]
        kind = "llama"
        vocab_size = {VOCAB}
        d_model = {WIDTH}
        n_layers = {LAYERS}
        n_heads = {HEADS}
        d_ff = {HIDDEN}
        [data]
        sources = [{{ kind = "text", path = "." }}]
        sequence_length = {LENGTH}
        batch_size = {BATCH}
        [optimizer]
        kind = "adamw"
        lr = 1e-4
        [train]
        steps = 1000
        """,
        overrides,
    ).value
    step, (abstract, struct, frozen), _ = abstract_step(run, jax.devices()[:1])
    compiled = step.lower(abstract, struct, frozen).compile()
    model = LanguageModel.build(run.model)
    optimizer = optim.build(run.optimizer, total_steps=1000, axes=model.axes)
    state = initial_state(model, optimizer, abstract, 0)
    tokens = np.random.default_rng(0).integers(0, VOCAB, (BATCH, LENGTH + 1)).astype(np.int32)
    batch = {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segment_ids": np.ones((BATCH, LENGTH), np.int32),
        "positions": np.tile(np.arange(LENGTH, dtype=np.int32), (BATCH, 1)),
        "loss_mask": np.ones((BATCH, LENGTH), np.float32),
    }
    batch = jax.device_put(batch, {name: entry.sharding for name, entry in struct.items()})
    box = [state]

    def one() -> float:
        box[0], metrics = compiled(box[0], batch, frozen)
        return float(metrics["loss"])

    return one


def torch_step(compiled: bool) -> Callable[[], float]:
    """The same step by transformers' Llama and torch's fused AdamW."""
    import torch
    import transformers

    torch.manual_seed(0)
    settings = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        intermediate_size=HIDDEN,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
        use_cache=False,
        attn_implementation="sdpa",
    )
    model = transformers.LlamaForCausalLM(settings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    tokens = torch.randint(0, VOCAB, (BATCH, LENGTH + 1))
    forward = torch.compile(model) if compiled else model

    def one() -> float:
        logits = forward(tokens[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(
            logits.reshape(-1, VOCAB), tokens[:, 1:].reshape(-1)
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return one


class Contender:
    """A step in a process of its own."""

    def __init__(self, name: str, huge_pages: bool, overrides: Sequence[str]):
        environment = os.environ | {host_memory.SWITCH: "off"}
        if huge_pages and (wanted := host_memory.tunables(os.environ)):
            environment[host_memory.TUNABLES] = wanted
        command = [sys.executable, __file__, "--step", name, *overrides]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def __call__(self) -> float:
        """Seconds of the next step."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._process.args}: ended with {self._process.wait()}")
        return float(line)

    def close(self) -> None:
        self._process.communicate()


def serve(name: str, overrides: Sequence[str]) -> None:
    """Be a contender: a step for each line read."""
    step = ziggurat_step(*overrides) if name == "ziggurat" else torch_step(name == "torch.compile")
    for _ in sys.stdin:
        begun = time.perf_counter()
        step()
        print(time.perf_counter() - begun, flush=True)


def measure(contenders: dict[str, Contender], rounds: int) -> dict[str, list[float]]:
    """Seconds of one step of each contender per round, in turn; two warm-up steps each."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for step in contenders.values():
        step()
        step()
    for _ in range(rounds):
        for name, step in contenders.items():
            time.sleep(REST_S)
            times[name].append(step())
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help="keys of the run file, e.g. train.remat=full")
    options = parser.parse_args()
    if options.step:
        serve(options.step, options.overrides)
        return
    contenders = {"ziggurat": Contender("ziggurat", True, options.overrides)}
    if not options.no_torch:
        contenders["torch eager"] = Contender("torch eager", False, ())
        contenders["torch.compile"] = Contender("torch.compile", False, ())
        contenders["torch.compile, huge pages"] = Contender("torch.compile", True, ())
    times = measure(contenders, options.rounds)
    for contender in contenders.values():
        contender.close()
    tokens = BATCH * LENGTH
    result: dict = {"tokens_per_step": tokens, "rounds": options.rounds, "seconds": {}, "ratio": {}}
    for name, values in times.items():
        median = statistics.median(values)
        result["seconds"][name] = {"median": median, "min": min(values), "max": max(values)}
        print(f"{name:<26} {median:7.3f} s/step  {tokens / median:8.0f} tokens/s")
    for name in times:
        if name != "ziggurat":
            ratios = sorted(peer / own for peer, own in zip(times[name], times["ziggurat"]))
            spread = {"median": statistics.median(ratios), "min": ratios[0], "max": ratios[-1]}
            result["ratio"][name] = spread
            print(f"tokens/s against {name}: {spread['median']:.2f}", end=" ")
            print(f"({spread['min']:.2f} to {spread['max']:.2f} over {options.rounds} rounds)")
    if not options.no_torch and not options.overrides:
        result["machine"] = facts()
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps(result, indent=1) + "\n")


def facts() -> dict[str, object]:
    """What the figures depend on."""
    import torch

    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cpu": model or platform.processor(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "jax": jax.__version__,
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "cpu_kernels": library().level or library().why_not,
        "date": time.strftime("%Y-%m-%d"),
    }


if __name__ == "__main__":
    main()

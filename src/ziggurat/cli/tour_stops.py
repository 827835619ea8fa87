"""The stops of ``ziggurat tour``: for each row of the product's table a command of its own, small
enough for two cores. Later stops use what earlier ones left in the tour's directory, ``{out}``."""

import dataclasses
import json
import urllib.request
from collections.abc import Callable

from ziggurat.core.json_types import Json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stop:
    """A stop of the tour: its commands, and the results to look at afterwards."""

    function: str
    package: str
    shows: str
    """Purpose of the commands, in one line."""
    commands: tuple[str, ...]
    """Command lines after ``ziggurat``; ``{out}`` is the tour's directory, ``{recipes}`` the run
    files, ``{port}`` a free port."""
    results: tuple[tuple[str, str], ...] = ()
    """(title, path below the tour's directory) of files that people look at."""
    ask: Callable[[str], str] | None = None
    """The last command is a server: what is asked of it, given its address."""


def complete(address: str) -> str:
    """One completion over OpenAI's API."""
    name = _get(f"{address}/v1/models")["data"][0]["id"]
    body = {"model": name, "prompt": "def add(a, b):\n", "max_tokens": 16, "temperature": 0}
    answer = _post(f"{address}/v1/completions", body)
    return f"POST /v1/completions {body}\n{json.dumps(answer['choices'][0]['text'])}"


def infer(address: str) -> str:
    """One inference over KServe v2, of the model's own shapes, with zeros."""
    name = _post(f"{address}/v2/repository/index", {})[0]["name"]
    metadata = _get(f"{address}/v2/models/{name}")
    inputs = []
    for entry in metadata["inputs"]:
        shape = [1 if size < 0 else size for size in entry["shape"]]
        count = 1
        for size in shape:
            count *= size
        inputs.append(
            {"name": entry["name"], "datatype": entry["datatype"], "shape": shape}
            | {"data": [0] * count}
        )
    answer = _post(f"{address}/v2/models/{name}/infer", {"inputs": inputs})
    shapes = {output["name"]: output["shape"] for output in answer["outputs"]}
    return f"POST /v2/models/{name}/infer\noutputs and their shapes: {shapes}"


def _get(url: str) -> Json:
    with urllib.request.urlopen(url, timeout=60) as response:
        return json.load(response)


def _post(url: str, body: Json) -> Json:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.load(response)


_RUN = "{out}/tour"

STOPS = (
    Stop(
        function="Core framework",
        package="core, mesh",
        shows="what this machine has, and what of it the product uses",
        commands=("doctor",),
    ),
    Stop(
        function="Data",
        package="data",
        shows="a corpus tokenised once, its documents counted, and how full packed rows are",
        commands=(
            "data stats {recipes}/tiny-python.toml --html {out}/data.html --set=output={out}",
        ),
        results=(("the data", "data.html"),),
    ),
    Stop(
        function="Foundation models",
        package="train",
        shows="a language model trained on the sources of Python's standard library",
        commands=(
            "train {recipes}/tiny-python.toml --set=output={out} --set=name=tour --train.steps=40",
        ),
        results=(("report of the run", "tour/report.html"),),
    ),
    Stop(
        function="Diffusion",
        package="train",
        shows="digits by class from a diffusion transformer in the same trainer, after a few steps",
        commands=(
            "train {recipes}/digits-flow.toml --set=output={out} --train.steps=150"
            " --set=report.sample_images=0",
            "sample {out}/digits-flow --last --guidance 3 --sampler dpm++ --steps 10"
            " --grid {out}/digits.png",
        ),
        results=(("report of the run", "digits-flow/report.html"), ("digits", "digits.png")),
    ),
    Stop(
        function="Optimizers and losses",
        package="optim",
        shows="the same run under another optimizer, declared in the run file",
        commands=(
            "train {recipes}/tiny-python.toml --set=output={out} --set=name=tour-adamw"
            " --train.steps=40 --set=optimizer='{{kind=\"adamw\", lr=3e-3}}'",
        ),
        results=(("report of the run", "tour-adamw/report.html"),),
    ),
    Stop(
        function="Checkpoints",
        package="checkpoint",
        shows="every byte of the run's checkpoints compared with its digest",
        commands=(f"checkpoints {_RUN} --verify",),
    ),
    Stop(
        function="Profiling",
        package="profile",
        shows="where the run's time went, and what to do about it",
        commands=(f"profile {_RUN}",),
        results=(("profile of the run", "tour/profile.html"),),
    ),
    Stop(
        function="Model authoring",
        package="nn, models",
        shows="the trained model as transformers reads it",
        commands=(f"export hf {_RUN} --output {{out}}/exported",),
        results=(("config.json", "exported/config.json"),),
    ),
    Stop(
        function="Quantization",
        package="quantize",
        shows="int8 weights by rules, with their perplexity and size beside the original's",
        commands=(f"quantize {_RUN} --recipe int8 --output {{out}}/int8 --report --tokens 2048",),
        results=(("what it costs", "int8/report.html"),),
    ),
    Stop(
        function="LLM inference",
        package="serve.llm",
        shows="the quantised model behind OpenAI's API",
        commands=("serve {out}/int8 --port {port}",),
        ask=complete,
    ),
    Stop(
        function="Non-LLM inference",
        package="serve.predict",
        shows="a JAX function as a hermetic bundle behind KServe v2",
        commands=(
            "bundle export jax.nn:softmax {out}/models/softmax/1"
            " --signature 'x:FP32[b,16] -> probabilities'",
            "serve {out}/models --port {port}",
        ),
        ask=infer,
    ),
    Stop(
        function="Kernels",
        package="kernels",
        shows="which kernels serve here, and the C++ attention against the plain ones",
        commands=("kernels list", "kernels bench attention --rows 128 --rounds 3"),
    ),
    Stop(
        function="Post-training",
        package="post",
        shows="a student that learns what the trained model predicts (distillation)",
        commands=(
            "train {recipes}/tiny-python.toml --set=output={out} --set=name=tour-student"
            " --train.steps=10 --model.n_layers=2"
            f' --set=objective=\'{{{{kind="distill", teacher="{_RUN}"}}}}\'',
        ),
        results=(("report of the run", "tour-student/report.html"),),
    ),
    Stop(
        function="Multipod training",
        package="cluster",
        shows="two hosts under one controller train the same run together",
        commands=(
            "cluster run {recipes}/tiny-python.toml --hosts 2 --set=output={out}"
            " --set=name=tour-cluster --train.steps=10",
        ),
        results=(("report of the run", "tour-cluster/report.html"),),
    ),
    Stop(
        function="Compiler and runtime",
        package="plan",
        shows="Llama 3 8B compiled for 64 chips of TPU v5p with none of them here",
        commands=("plan {recipes}/llama3-8b-v5p.toml --topology v5p:4x4x4 --html {out}/plan.html",),
        results=(("the plan", "plan.html"),),
    ),
)
"""In the order of the page."""

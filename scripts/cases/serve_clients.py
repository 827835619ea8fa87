"""A server of bundles: the protocol's requests, hostile clients, and KServe's own SDK."""

import contextlib
import importlib.util
import re
from collections.abc import Iterator

from cases.case import ZIGGURAT, Done, Scratch, case, end, expect
from cases.serve import answers, free_port

EXTENSIONS = 31
"""Requests of the conformance script that are Triton's extensions, which the server refuses by
name: shared memory, sequences, tracing, logging, strings with parameters of its own."""


@contextlib.contextmanager
def _repository(scratch: Scratch, ports: tuple[int, int]) -> Iterator[int]:
    """The repository that the scripts ask, served; its process."""
    scratch.copy("servepredict/00-repository/mkrepo.py")
    made = scratch.python("mkrepo.py", limit_s=300)
    expect(made.code == 0, made.last)
    log = scratch.path / "log"
    flags = ("--port", str(ports[0]), "--grpc-port", str(ports[1]), "--model-control", "explicit")
    server = scratch.start(ZIGGURAT, "serve", "cases-work/work/repo", *flags, log=log)
    try:
        came = scratch.until(
            lambda: server.poll() is not None or answers(ports[0], "/v2/health/ready"), 300
        )
        expect(came and server.poll() is None, Done(1, log.read_text()).last)
        yield server.pid
    finally:
        end(server)


@case("servepredict/02-conformance")
def conformance(scratch: Scratch) -> str:
    """All of the protocol's requests, and what is refused is an extension."""
    ports = free_port(), free_port()
    scratch.copy("servepredict/02-conformance/conf.py")
    with _repository(scratch, ports):
        done = scratch.python("conf.py", *map(str, ports), limit_s=400)
    passed, total = (int(n) for n in re.findall(r"(\d+)/(\d+)$", done.last.strip(" )'"))[-1])
    areas = sorted({line.split(" | ")[0] for line in done.text.splitlines() if "| FAIL" in line})
    return expect(passed >= total - EXTENSIONS, f"{passed} of {total}; others: {areas}")


@case("servepredict/05-dos", note="judged by failed probes: times are the load test's")
def hostile(scratch: Scratch) -> str:
    """The liveness probe never fails."""
    ports, found = (free_port(), free_port()), []
    with _repository(scratch, ports) as process:
        for name in ("dos.py", "dos2.py"):
            scratch.copy(f"servepredict/05-dos/{name}")
            done = scratch.python(name, *map(str, (*ports, process)), limit_s=400)
            expect(done.code == 0, done.last)
            found += re.findall(r"worst (\d+) ms, failed (\d+)/(\d+)", done.text)
    failed = sum(int(one) for _, one, _ in found)
    worst = max((int(ms) for ms, _, _ in found), default=-1)
    asked = sum(int(one) for _, _, one in found)
    return expect(
        found and not failed,
        f"{len(found)} attacks, {failed} of {asked} probes failed, worst {worst} ms",
    )


@case("servepredict/06-kserve-grpc", note="needs the package kserve")
def kserve(scratch: Scratch) -> str:
    """KServe's SDK has its answers."""
    expect(importlib.util.find_spec("kserve"), "the package kserve is not installed here")
    scratch.copy("servepredict/06-kserve-grpc/ks.py")
    with _repository(scratch, (18700, 18701)):
        done = scratch.python("ks.py", limit_s=120)
    lines = re.findall(r"^(PASS|FAIL) (.*)$", done.text, re.MULTILINE)
    wrong = [said for verdict, said in lines if verdict == "FAIL"]
    return expect(len(lines) >= 10 and not wrong, f"{len(lines)} asked, wrong: {wrong}")

"""Install the built wheel on every supported Python that is here, and use it as a newcomer would.

Called by ``make matrix``::

    .venv/bin/python scripts/matrix.py dist/ziggurat-*.whl

For each interpreter: a bare environment, the wheel without extras, then in an empty directory
outside the checkout ``doctor``, ``train tiny-python`` for a few steps, ``generate``, and ``serve``,
which must name the missing extra; then the extra ``demo``, and a completion from a real server.
``--demo 3.11`` also runs the whole ``ziggurat demo`` there. Versions are the newest that pip finds,
as for a user, not the locked ones. An interpreter that is not installed is said to be left out.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

VERSIONS = ("3.11", "3.12", "3.13", "3.14")
LIMIT_S = 1800
START_S = 300
TRAIN = (
    "train", "tiny-python", "--train.steps=12", "--checkpoint.every=6", "--set=report.prompts=[]",
)  # fmt: skip


class Failed(Exception):
    """A step whose outcome was not the expected one."""


class Interpreter:
    """One Python with the wheel installed, in a directory of its own."""

    def __init__(self, python: str, directory: Path):
        self.directory = directory
        self.cwd = directory / "elsewhere"
        self.cwd.mkdir(parents=True)
        self.bin = directory / "environment" / "bin"
        subprocess.run([python, "-m", "venv", str(self.bin.parent)], check=True, timeout=LIMIT_S)
        # nothing of the checkout, and no compiler's work kept from elsewhere
        kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        self.environment = {**kept, "XDG_CACHE_HOME": str(directory / "cache")}

    def install(self, requirement: str) -> None:
        """Install with pip, at the newest versions."""
        command = [str(self.bin / "python"), "-m", "pip", "install", "--quiet", requirement]
        self._run(command, 0)

    def ziggurat(self, *arguments: str, code: int = 0) -> str:
        """Run a command; returns what it printed."""
        return self._run([str(self.bin / "ziggurat"), *arguments], code)

    def complete(self, model: str) -> str:
        """The text that a server of its own answers to one request."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [str(self.bin / "ziggurat"), "serve", model, "--port", str(port)]
        with open(self.directory / "server.log", "wb") as log:
            process = subprocess.Popen(
                command, cwd=self.cwd, env=self.environment, stdout=log, stderr=log
            )
        try:
            address = f"http://127.0.0.1:{port}"
            self._wait(process, f"{address}/ready")
            body = {"model": Path(model).name, "prompt": "import os", "max_tokens": 4}
            request = urllib.request.Request(
                f"{address}/v1/completions",
                json.dumps(body).encode(),
                {"content-type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.load(response)["choices"][0]["text"]
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)

    def _wait(self, process: subprocess.Popen, url: str) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and process.poll() is None:
            try:
                with urllib.request.urlopen(url, timeout=2) as response:
                    if response.status == 200:
                        return
            except OSError:
                time.sleep(0.2)
        raise Failed(f"serve was not ready: {(self.directory / 'server.log').read_text()[-800:]}")

    def _run(self, command: list[str], code: int) -> str:
        done = subprocess.run(
            command, cwd=self.cwd, env=self.environment, capture_output=True, text=True,
            timeout=LIMIT_S,
        )  # fmt: skip
        printed = done.stdout + done.stderr
        if done.returncode != code or "Traceback" in printed:
            shown = " ".join([Path(command[0]).name, *command[1:]])
            raise Failed(
                f"{shown}: exit code {done.returncode}, expected {code}\n{printed[-2000:]}"
            )
        return printed


def main() -> int:
    """Check every interpreter; the exit code is 1 if one fails, or none is here."""
    parser = argparse.ArgumentParser(description="smoke-test the wheel on every Python")
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--only", nargs="*", default=VERSIONS, metavar="VERSION")
    parser.add_argument("--demo", nargs="*", default=(), metavar="VERSION")
    options = parser.parse_args()
    wheel = options.wheel.resolve(strict=True)
    outcomes = {}
    for version in options.only:
        python = find(version)
        if python is None:
            outcomes[version] = "left out: no such Python is installed here"
            continue
        directory = Path(tempfile.mkdtemp(prefix=f"ziggurat-python{version}-"))
        begun = time.monotonic()
        try:
            facts = check(Interpreter(python, directory), wheel, version in options.demo)
            outcomes[version] = f"passed in {time.monotonic() - begun:.0f} s: {facts}"
        except (Failed, subprocess.SubprocessError) as error:
            outcomes[version] = f"FAILED: {error}"
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        print(f"Python {version}: {outcomes[version]}", flush=True)
    print("\n" + "\n".join(f"Python {name}: {text}" for name, text in outcomes.items()))
    passed = [text for text in outcomes.values() if text.startswith("passed")]
    failed = [text for text in outcomes.values() if text.startswith("FAILED")]
    print(f"{len(passed)} passed, {len(failed)} failed")
    return 1 if failed or not passed else 0


def find(version: str) -> str | None:
    """An interpreter of a minor version that is installed here: on the path, or of pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    places = [Path(entry) for entry in os.environ["PATH"].split(os.pathsep)]
    places += sorted(pyenv.glob(f"{version}.*/bin"), reverse=True)
    for place in places:
        python = place / f"python{version}"
        # a shim of pyenv exists for every version, and fails for those that are not chosen
        if (
            python.is_file()
            and not subprocess.run([python, "-c", ""], capture_output=True).returncode
        ):
            return str(python)
    return None


def check(here: Interpreter, wheel: Path, demo: bool) -> str:
    """What a newcomer does; returns the versions and kernels that doctor found.

    Raises:
        Failed: naming the command and what it printed.
    """
    here.install(str(wheel))
    report = json.loads(here.ziggurat("doctor", "--json"))
    broken = [name for name, found in report["commands"].items() if not found["works"]]
    if set(broken) - {"serve", "demo"}:
        raise Failed(f"doctor: these commands do not work without extras: {broken}")
    here.ziggurat(*TRAIN)
    here.ziggurat("generate", "runs/tiny-python", "--prompt=import os", "--max-tokens=4")
    line = here.ziggurat("serve", "runs/tiny-python", code=2)
    if "pip install 'ziggurat[serve]'" not in line:
        raise Failed(f"serve without its extra does not name it: {line}")
    here.install(f"{wheel}[demo]")
    here.complete("runs/tiny-python")
    if demo:
        here.ziggurat("demo")
    versions, kernels = report["versions"], report["machine"]["cpu_kernels"]
    return f"jax {versions['jax']}, flax {versions['flax']}, CPU kernels {kernels}"


if __name__ == "__main__":
    sys.exit(main())

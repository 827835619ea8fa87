"""Installation of locked requirements into a virtual environment, called by ``install.py``.

An argument that ends in ``.lock`` is installed with its hashes and without asking for dependencies,
since a lock is complete; ``--package`` installs this checkout, editable; anything else is handed to
pip as it is. pip's own words go to ``install.log`` in the environment.
"""

import subprocess
import sys
from pathlib import Path

PIP_INSTALL = ("-m", "pip", "--no-input", "--disable-pip-version-check", "install")


def main(args):
    """Install each of ``args[1:]`` into the environment ``args[0]``; returns the exit code."""
    environment = Path(args[0])
    python = environment / "bin" / "python"
    if not python.exists():
        print(f"making {environment} with Python {sys.version.split()[0]}", flush=True)
        if subprocess.call([sys.executable, "-m", "venv", str(environment)]):
            return fail(f"could not make {environment}; expected a Python with venv and pip")
    for name in args[1:]:
        code = install(python, name, environment / "install.log")
        if code:
            return code
    return 0


def install(python, name, log):
    """Install one requirement, counting the packages that pip collects."""
    if name == "--package":
        options = ["--no-deps", "--no-build-isolation", "--editable", "."]
    elif name.endswith(".lock"):
        options = ["--require-hashes", "--no-deps", "--requirement", name]
    else:
        options = [name]
    print(
        "installing {} ".format("this checkout" if name == "--package" else name),
        end="",
        flush=True,
    )
    command = [str(python), *PIP_INSTALL, *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True
    )
    with open(str(log), "a") as copy, process:
        collected = 0
        for line in process.stdout or ():
            copy.write(line)
            if line.startswith("Collecting "):
                collected += 1
                if collected % 10 == 0:
                    print(collected, end=" ", flush=True)
            elif line.startswith("Installing collected"):
                print("unpacking", end=" ", flush=True)
    print("failed" if process.returncode else "done", flush=True)
    if process.returncode:
        print("\n".join(log.read_text().splitlines()[-20:]))
        return fail(f"pip could not install {name}; its words are above and in {log}")
    return 0


def fail(line):
    """Say what went wrong; the exit code for it."""
    print("error: " + line, file=sys.stderr, flush=True)
    return 1

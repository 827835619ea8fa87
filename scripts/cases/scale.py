"""Plans for hardware that is not here, and a cluster's endless restarts."""

import re

from cases.case import Done, Scratch, case, expect

BYTES = ("--set", 'tokenizer={kind="bytes"}')


def _plan(scratch: Scratch, run: str, topology: str, *options: str, limit_s: float = 240) -> Done:
    return scratch.ziggurat("plan", run, "--topology", topology, *options, limit_s=limit_s)


def _seen(done: Done) -> str:
    lines = [x.strip(" │┃") for x in done.text.splitlines() if re.search("MFU|fits|fit |peak", x)]
    return f"exit {done.code}: " + ("; ".join(lines)[:260] or done.last.strip()[:260])


@case("scale/02-moe-plan", note="by shapes alone: compiling takes half an hour")
def moe_plan(scratch: Scratch) -> str:
    """The plan is the target's program: at most 100 % MFU, and memory near the compiled."""
    found, rates = [], []
    for name in ("mixtral-fsdp.toml", "mixtral-ep8.toml"):
        scratch.copy(f"scale/02-moe-plan/{name}")
        done = _plan(scratch, name, "v5p:4x4x4", "--analytic", *BYTES)
        rates += [float(x) for x in re.findall(r"([\d.]+)\s*%\s*(?:of|MFU)|MFU\D*([\d.]+)\s*%",
                                               done.text) for x in x if x]  # fmt: skip
        found.append(_seen(done))
    return expect(rates and max(rates) <= 100, "; ".join(found))


@case("scale/04-connection-error")
def connection_error(scratch: Scratch) -> str:
    """A user's error ends the run, and is named."""
    for name in ("try2.py", "user2.py"):
        scratch.copy(f"scale/04-connection-error/{name}")
    scratch.environment["PYTHONPATH"] = str(scratch.path)
    done = scratch.python("try2.py", limit_s=120)
    line = done.find("^TRAIN:")
    worlds = len(re.findall("shutdown barrier", done.text))
    fits = line.startswith("TRAIN: HostError") and "Connection string" in done.text
    return expect(fits, f"{line[:200] or done.last}; {worlds} worlds")


@case("scale/06-lora-plan")
def lora_plan(scratch: Scratch) -> str:
    """A LoRA run has a plan."""
    scratch.copy("scale/06-lora-plan/lora.toml")
    done = _plan(scratch, "lora.toml", "v5e:4x4", "--analytic")
    return expect(done.code in (0, 1) and "Traceback" not in done.text, _seen(done))


@case("scale/07-topology-crash", note="the recipe by its name")
def topology(scratch: Scratch) -> str:
    """A mesh, or one line."""
    done = _plan(scratch, "llama3-8b-v5p", "v5p:20x4x4", "--analytic", "--mesh.fsdp=320",
                 "--data.batch_size=640")  # fmt: skip
    one_line = done.code == 2 and bool(done.find("^error"))
    fits = "Traceback" not in done.text and (done.code in (0, 1) or one_line)
    return expect(fits, _seen(done))

"""``ziggurat checkpoints``: list what a run has saved; verify, repair, compare and export it."""

import dataclasses
import sys
import time
from json import dumps
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.table import Table

from ziggurat.cli import console
from ziggurat.core.errors import CheckpointError
from ziggurat.core.json_types import Json, JsonObject

EXAMPLE = """ziggurat checkpoints runs/tiny-python --verify
  ziggurat checkpoints verify|repair|diff|export --help"""
EXAMPLES = {
    "verify": "ziggurat checkpoints verify runs/tiny-python",
    "repair": "ziggurat checkpoints repair runs/tiny-python --from /backup/tiny-python",
    "diff": "ziggurat checkpoints diff runs/a/checkpoints/step_00000100 runs/b",
    "export": "ziggurat checkpoints export runs/tiny-python weights --to safetensors",
}


def checkpoints(run: Path, /, verify: bool = False, json: bool = False) -> int:
    """List a run's checkpoints; exit code 1 if one is damaged.

    Args:
        run: a run's directory, or one that holds step directories.
        verify: read every file and compare it with its digest.
        json: print JSON.
    """
    from ziggurat.checkpoint import StepReader, verify_step
    from ziggurat.checkpoint.quarantine import quarantined

    directory = _directory(run)
    infos, aside = StepReader(directory).steps(), quarantined(directory)
    if not infos and not aside:
        raise _nothing(run)
    rows = []
    for info in infos:
        intact, damage = info.intact, "" if info.intact else "a file is missing or cut short"
        if verify:
            try:
                verify_step(info.path)
            except CheckpointError as error:
                intact, damage = False, str(error)
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(info.created))
        row = {"step": info.step, "saved": when, "bytes": info.bytes, "intact": intact}
        rows.append(
            row
            | ({"metrics": info.metrics} if info.metrics else {})
            | ({"damage": damage} if damage else {})
        )
    rows += [
        {"step": entry.step, "intact": False, "damage": f"set aside as {entry.path.name}"}
        for entry in aside
    ]
    if json:
        return _print_json(rows, all(row["intact"] for row in rows))
    table = Table("step", "saved", "MB", "intact", title=str(directory), title_justify="left")
    for row in rows:
        state = "verified" if verify and row["intact"] else "yes" if row["intact"] else "no"
        shown = f"{state}: {row['damage']}" if "damage" in row else state
        size = f"{row['bytes'] / 1e6:.1f}" if "bytes" in row else ""
        table.add_row(str(row["step"]), row.get("saved", ""), size, shown)
    console.output().print(table)
    return 0 if all(row["intact"] for row in rows) else 1


def verify(path: Path, /, json: bool = False) -> int:
    """Read every file of every checkpoint and name each damaged one; exit code 1 if there is one.

    Args:
        path: a run's directory, one that holds step directories, or a step directory.
        json: print JSON.
    """
    from ziggurat.checkpoint.manifest import DamagedError, damage, read_manifest, unlisted

    rows: list[JsonObject] = []
    for step in _step_directories(path, quarantined=True):
        row: JsonObject = {"path": str(step), "files": 0, "bytes": 0, "damaged": {}}
        try:
            manifest = read_manifest(step)
            row |= {"files": len(manifest.files), "bytes": manifest.total_bytes}
            row |= {"damaged": damage(step, manifest, manifest.files)}
            row |= {"unlisted": unlisted(step, manifest)}
        except DamagedError as error:
            row["damaged"] = error.files
        rows.append(row)
    intact = not any(row["damaged"] for row in rows)
    if json:
        return _print_json(rows, intact)
    table = Table("checkpoint", "files", "MB", "state")
    for row in rows:
        lines = [f"{name}: {what}" for name, what in row["damaged"].items()] or ["intact"]
        lines += [f"{name}: not part of the checkpoint" for name in row.get("unlisted", ())]
        name, size = Path(row["path"]).name, f"{row['bytes'] / 1e6:.1f}"
        table.add_row(name, str(row["files"]), size, "\n".join(lines))
    console.output().print(table)
    return 0 if intact else 1


def repair(
    run: Path, /, copies: Annotated[tuple[Path, ...], tyro.conf.arg(name="from")] = ()
) -> int:
    """Put damaged checkpoints right with intact copies of their files; exit code 1 if one stays.

    Removes what killed writers left. A damaged step for which no copy helps is set aside under
    another name, so that nothing restores it.

    Args:
        run: a run's directory, or one that holds step directories; nobody may be saving there.
        copies: other copies of the checkpoints: a run, the directory of a persistent tier, or a
            step directory.
    """
    from ziggurat.checkpoint.repair import repair as repair_steps

    output = console.output()
    directory = _directory(run)
    if not directory.is_dir():
        raise _nothing(run)
    done = repair_steps(
        directory, copies, swept=lambda name: output.print(f"removed {name}", highlight=False)
    )
    for entry in done:
        copied = f"{len(entry.copied)} files copied" if entry.copied else "no file copied"
        if entry.repaired:
            state = "intact again"
        else:
            wrong = [f"{name}: {what}" for name, what in entry.missing.items()]
            state = f"set aside as {entry.path.name}; " + ("; ".join(wrong) or entry.note)
        output.print(f"step {entry.step}: {copied}, {state}", soft_wrap=True, highlight=False)
    if not done:
        output.print("every checkpoint is intact")
    return 0 if all(entry.repaired for entry in done) else 1


def diff(a: Path, b: Path, /, json: bool = False) -> int:
    """Compare two checkpoints: arrays, records and files; exit code 1 if they differ.

    Args:
        a: a step directory, or a run for its newest checkpoint.
        b: the other.
        json: print JSON.
    """
    from ziggurat.checkpoint.difference import difference

    found = difference(_newest(a), _newest(b))
    if json:
        return _print_json(dataclasses.asdict(found), not found)
    output = console.output()
    if not found:
        output.print("no difference")
        return 0
    if found.leaves:
        table = Table("leaf", "differs in", "first", "second", "max abs", "relative L2")
        for leaf in found.leaves:
            numbers = (
                "" if v is None else f"{v:.3g}" for v in (leaf.max_absolute, leaf.relative_l2)
            )
            table.add_row(f"{leaf.item}.{leaf.leaf}", leaf.what, leaf.first, leaf.second, *numbers)
        output.print(table)
    if found.records or found.files:
        table = Table("record or file", "first", "second")
        for name, values in found.records.items():
            table.add_row(name, *(dumps(value) for value in values))
        for name, what in found.files.items():
            table.add_row(name, what, "")
        output.print(table)
    return 1


def export(
    step: Path,
    out: Path,
    /,
    to: Literal["safetensors", "orbax", "pt", "distcp"],
    item: str = "params",
) -> int:
    """Write one array item of a checkpoint as others read it.

    Args:
        step: a step directory, or a run for its newest checkpoint.
        out: new directory (pt: new file).
        to: safetensors; orbax; pt, a torch file of plain tensors; distcp, a directory of torch's
            distributed checkpoints.
        item: which item.
    """
    from ziggurat.checkpoint import containers, read_arrays
    from ziggurat.core.pytrees import named_leaves

    source = _newest(step)
    if out.exists():
        raise CheckpointError(f"export to {out}", found="something there", expected="a new path")
    arrays = read_arrays(source, item)
    tensors = {name or item: value for name, value in named_leaves(arrays).items()}
    containers.write(to, tensors, out)
    console.output().print(f"{source} {item} -> {out}", soft_wrap=True, highlight=False)
    return 0


def main(args: list[str]) -> int:
    commands = {"verify": verify, "repair": repair, "diff": diff, "export": export}
    if args and args[0] in commands:
        name = args[0]
        return console.run(commands[name], args[1:], f"ziggurat checkpoints {name}", EXAMPLES[name])
    return console.run(checkpoints, args, "ziggurat checkpoints", EXAMPLE)


def _directory(run: Path) -> Path:
    return run / "checkpoints" if (run / "checkpoints").is_dir() else run


def _step_directories(path: Path, quarantined: bool = False) -> list[Path]:
    """The step directories of a run, or the one that ``path`` is."""
    from ziggurat.checkpoint import StepReader
    from ziggurat.checkpoint.quarantine import quarantined as set_aside

    if path.name.startswith("step_") and path.is_dir():
        return [path]
    directory = _directory(path)
    found = [info.path for info in StepReader(directory).steps()]
    if quarantined:
        found += [entry.path for entry in set_aside(directory)]
    if not found:
        raise _nothing(path)
    return found


def _newest(path: Path) -> Path:
    """A step directory, or the newest intact one of a run."""
    from ziggurat.checkpoint import StepReader

    if path.name.startswith("step_") and path.is_dir():
        return path
    newest = StepReader(_directory(path)).latest()
    if newest is None:
        raise _nothing(path)
    return newest.path


def _nothing(path: Path) -> CheckpointError:
    return CheckpointError(
        f"checkpoints of {path}",
        found="no step directory" if path.is_dir() else "no such directory",
        expected="a run that has saved",
    )


def _print_json(value: Json, good: bool) -> int:
    sys.stdout.write(dumps(value, indent=1) + "\n")
    return 0 if good else 1

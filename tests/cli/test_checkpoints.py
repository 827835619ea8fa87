"""``ziggurat checkpoints``: list, verify, repair, diff, export; bad input is one line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from ziggurat.checkpoint import CheckpointConfig, Checkpoints
from ziggurat.cli.main import main


def arrays(step: int):
    return {"params": {"block": {"w": np.full((2, 3), step, np.float32)}, "b": np.ones(2)}}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    run = tmp_path_factory.mktemp("original")
    with Checkpoints(run / "checkpoints", CheckpointConfig(keep_last=3)) as checkpoints:
        for step in (10, 20):
            metrics = {"eval_loss": 1 / step}
            checkpoints.save(step, arrays(step), {"step": step}, {"run.toml": b"x = 1\n"}, metrics)
    return run


@pytest.fixture
def run(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "run"))


@pytest.fixture
def call(capsys):
    """Run the command; returns its exit code and what it printed."""

    def call(*args: object) -> tuple[int, str]:
        capsys.readouterr()
        code = main(["checkpoints", *map(str, args)])
        return code, capsys.readouterr().out

    return call


@pytest.fixture
def fail(capsys):
    """Run the command, which must fail with one line."""

    def fail(*args: object) -> str:
        capsys.readouterr()
        assert main(["checkpoints", *map(str, args)]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        return lines[0]

    return fail


def spoil(run: Path, name: str) -> None:
    path = run / "checkpoints" / "step_00000020" / name
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


def test_list(run, call):
    code, text = call(run)
    assert code == 0
    assert "step" in text
    code, text = call(run, "--json")
    rows = json.loads(text)
    assert [(row["step"], row["intact"], row["metrics"]) for row in rows] == [
        (10, True, {"eval_loss": 0.1}),
        (20, True, {"eval_loss": 0.05}),
    ]
    spoil(run, "records.json")
    assert call(run)[0] == 0  # sizes only
    code, text = call(run, "--verify")
    assert code == 1
    assert "records.json" in text
    assert Checkpoints(run / "checkpoints").restore(None, arrays(0)).step == 10
    code, text = call(run)
    assert code == 1
    assert "set aside as step_00000020.damaged-digest-" in text


def test_verify(run, call):
    assert call("verify", run)[0] == 0
    spoil(run, "records.json")
    spoil(run, "arrays/params/_METADATA")
    (run / "checkpoints" / "step_00000020" / "note.txt").write_text("a note")
    code, text = call("verify", run)
    assert code == 1
    for part in ("records.json: digest", "arrays/params/_METADATA: digest", "note.txt: not part"):
        assert part in text
    code, text = call("verify", run, "--json")
    good, bad = json.loads(text)
    assert (code, good["damaged"]) == (1, {})
    assert sorted(bad["damaged"]) == ["arrays/params/_METADATA", "records.json"]
    assert call("verify", run / "checkpoints" / "step_00000010")[0] == 0
    assert call("verify", run / "checkpoints" / "step_00000020")[0] == 1


def test_repair(run, original, call):
    assert call("repair", run) == (0, "every checkpoint is intact\n")
    spoil(run, "records.json")
    (run / "checkpoints" / "step_00000030.tmp-writing").mkdir()
    code, text = call("repair", run)
    assert code == 1
    assert "removed step_00000030.tmp-writing" in text
    assert "step 20: no file copied, set aside as step_00000020.damaged-digest-" in text
    assert "records.json: digest" in text
    code, text = call("repair", run, "--from", original)
    assert (code, text) == (0, "step 20: 1 files copied, intact again\n")
    assert call("verify", run)[0] == 0


def test_diff(run, original, call):
    steps = [run / "checkpoints" / f"step_000000{step}" for step in (10, 20)]
    assert call("diff", steps[1], original) == (0, "no difference\n")
    code, text = call("diff", *steps)
    assert code == 1
    for part in ("params.block.w", "values", "10", "step"):
        assert part in text
    code, text = call("diff", *steps, "--json")
    found = json.loads(text)
    assert code == 1
    assert found["records"] == {"step": [10, 20]}
    (leaf,) = found["leaves"]
    assert (leaf["leaf"], leaf["max_absolute"], leaf["relative_l2"]) == ("block.w", 10.0, 1.0)


def test_export(run, call, tmp_path):
    import orbax.checkpoint as ocp

    code, _ = call("export", run, tmp_path / "weights", "--to", "safetensors")
    assert code == 0
    found = safetensors.numpy.load_file(tmp_path / "weights" / "model.safetensors")
    assert sorted(found) == ["b", "block.w"]
    np.testing.assert_array_equal(found["block.w"], arrays(20)["params"]["block"]["w"])

    step = run / "checkpoints" / "step_00000010"
    assert call("export", step, tmp_path / "tree", "--to", "orbax", "--item", "params")[0] == 0
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.restore(tmp_path / "tree")
    np.testing.assert_array_equal(tree["block"]["w"], arrays(10)["params"]["block"]["w"])


def test_bad_input_is_one_line(run, fail, tmp_path):
    nowhere = tmp_path / "nowhere"
    for command in ("verify", "repair"):
        assert "found no such directory; expected a run that has saved" in fail(command, nowhere)
    assert "found no such directory" in fail("diff", nowhere, run)
    assert "found no such directory" in fail("export", nowhere, tmp_path / "o", "--to", "orbax")
    assert "found something there" in fail("export", run, run, "--to", "orbax")
    line = fail("export", run, tmp_path / "o", "--to", "orbax", "--item", "parms")
    assert "did you mean params?" in line
    assert not (tmp_path / "o").exists()
    assert "check --from" in fail("repair", run, "--from", nowhere)
    spoil(run, "records.json")
    assert "records.json: found digest" in fail("diff", run / "checkpoints/step_00000020", run)


@pytest.mark.parametrize("command", ["verify", "repair", "diff", "export"])
def test_help_ends_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["checkpoints", command, "--help"])
    assert stop.value.code == 0
    assert f"ziggurat checkpoints {command} " in capsys.readouterr().out.partition("example:")[2]

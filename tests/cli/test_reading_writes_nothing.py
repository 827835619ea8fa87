"""Every command that reads a model or a run leaves that directory as it was.

The directories hold what a writer that was killed leaves, and a folder of its owner whose name
looks like a draft. While a command runs, Python may not open for writing, make, rename or remove
anything below them (an audit hook refuses, as a read-only file system would, and keeps the
attempt); afterwards every entry has its bytes, size, times and inode.
"""

import contextlib
import hashlib
import io
import os
import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from tests.post.runs import fresh
from tests.train.runs import TEXT

import ziggurat
from ziggurat.cli.main import main
from ziggurat.data.tokenizers import byte_level
from ziggurat.models import BertConfig, DiffusionModel, DitConfig, EncoderModel
from ziggurat.models.conversion.sentence_layout import SentenceConfig
from ziggurat.models.diffusion import RectifiedFlow
from ziggurat.models.image_pipeline import ImagePipeline, PipelineComponents
from ziggurat.models.loading import pretrained, pretrained_encoder, pretrained_pipeline

FEW = "--max-running 1 --max-batched-tokens 16 --max-sequence-length 32"
READERS = {
    "checkpoints list": "checkpoints {run} --verify",
    "checkpoints verify": "checkpoints verify {run}",
    "checkpoints diff": "checkpoints diff {run} {run}",
    "checkpoints export": "checkpoints export {run} {out}/arrays --to safetensors",
    "profile": "profile {run} --json",
    "data stats": "data stats {run}",
    "data sample": "data sample {run}",
    "data decode": "data decode {run} --ids 1,2",
    "data trace": "data trace {run} --step 1",
    "plan": "plan {run}/run.toml --topology v5e:2x2 --analytic --json {out}/plan.json",
    "import hf": "import hf {hf} --output {out}/model --verify never",
    "import hf, an encoder": "import hf {encoder_hf} --output {out}/model --verify never",
    "import weights": "import weights {hf}/model.safetensors --config {hf} --output {out}/model",
    "import diffusers": "import diffusers {dit_hf} --output {out}/model",
    "export hf of a run": "export hf {run} --output {out}/hf",
    "export hf of a directory": "export hf {hf} --output {out}/hf",
    "export hf of an encoder": "export hf {encoder} --output {out}/hf",
    "export diffusers": "export diffusers {dit} --output {out}/dit",
    "export weights": "export weights {run} --to pt --output {out}/w.pt",
    "quantize": "quantize {hf} --recipe int8 --output {out}/small",
    "eval": "eval {hf} --text {out}/text.txt --tokens 32",
    "generate": "generate {hf} --prompt ab --max-tokens 2 --max-sequence-length 32",
    "chat": "chat {run} --max-sequence-length 32",
    "serve": "serve {hf} --port 0 --warm-only --compile-cache {out}/programs " + FEW,
    "sample": "sample {dit} --count 1 --steps 2 --images {out}/drawn.npz",
    "train from a model": "train {out}/tuned.toml",
}
"""By what they do, commands over the directories of :func:`models`; ``out`` is the test's own."""
TUNED = """
name = "tuned"
output = "{out}"

[model]
kind = "pretrained"
path = "{hf}"

[data]
sources = [{{ kind = "text", path = "{out}", glob = "text.txt" }}]
sequence_length = 16
batch_size = 8

[optimizer]
kind = "adamw"
lr = 1e-3

[train]
steps = 1

[report]
tensorboard = false
"""
CHANGES = ("mkdir", "rename", "remove", "rmdir", "link", "symlink", "chmod", "chown", "truncate")
CHANGING = frozenset({"shutil.rmtree", "os.utime", *(f"os.{change}" for change in CHANGES)})
"""Audit events of what changes a directory; that of ``open`` depends on its flags."""


class Watch:
    """Attempts to write below some directories; each is refused while ``roots`` is set."""

    WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def __init__(self):
        self.roots: tuple[str, ...] = ()
        self.attempts: list[str] = []
        sys.addaudithook(self)

    def __call__(self, event: str, args: tuple) -> None:
        if not self.roots:
            return
        if event == "open":
            paths = [args[0]] if isinstance(args[2], int) and args[2] & self.WRITES else []
        else:
            paths = list(args) if event in CHANGING else []
        for path in paths:
            if isinstance(path, (str, bytes, os.PathLike)) and self._below(os.fsdecode(path)):
                self.attempts.append(f"{event} {os.fsdecode(path)}")
                raise PermissionError(f"read-only: {event} {os.fsdecode(path)}")

    def _below(self, path: str) -> bool:
        return os.path.abspath(path).startswith(self.roots)


@pytest.fixture(scope="module")
def watch():
    return Watch()


def drawn(abstract):
    """Random parameters, without compiling their initialisation."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), abstract)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A trained run, a Hugging Face directory, an encoder and an image model, each with leftovers
    and its owner's files."""
    top = tmp_path_factory.mktemp("models")
    (top / "tiny.toml").write_text(TEXT)
    with contextlib.redirect_stdout(io.StringIO()):
        options = [f"--set=output={top}", "--set=name=run", "--train.steps=2"]
        assert main(["train", str(top / "tiny.toml"), *options]) == 0
    whole = pretrained.load(fresh(top / "base"))
    whole.tokenizer.chat_templates["default"] = "{% for m in messages %}{{ m.content }}{% endfor %}"
    pretrained.export_hf(whole, top / "hf")
    model = EncoderModel.build(BertConfig(vocab_size=288, d_model=16, n_layers=1, n_heads=2))
    sentence = SentenceConfig(max_length=32, pooling="mean", normalize=True)
    params = drawn(model.abstract)
    encoder = pretrained_encoder.PretrainedEncoder(
        model, params, byte_level(), sentence, "encoder", "drawn"
    )
    pretrained_encoder.save(encoder, top / "encoder")
    pretrained_encoder.export_hf(encoder, top / "encoder_hf")
    small = DitConfig(
        image_size=8, channels=4, classes=3, patch_size=4, d_model=16, n_layers=1, n_heads=2
    )
    dit = DiffusionModel.build(small)
    around = PipelineComponents.of(RectifiedFlow())
    weights = {"params": drawn(dit.abstract)}
    pipeline = ImagePipeline(dit, weights, around, None, "dit", "drawn")
    pretrained_pipeline.save(pipeline, top / "dit")
    from ziggurat.models.loading import diffusers_layout

    diffusers_layout.export(pipeline, top / "dit_hf")
    found = {}
    for name in ("run", "hf", "encoder", "encoder_hf", "dit", "dit_hf"):
        found[name] = top / name
        for directory in (top / name, top / name / "checkpoints"):
            if directory.is_dir():
                (directory / "step_00000099.tmp-writing").mkdir()
                (directory / "thesis.tmp-draft").mkdir()
                (directory / "thesis.tmp-draft" / "chapter.txt").write_text("mine")
                (directory / ".lock").unlink(missing_ok=True)
    return found


def snapshot(directory: Path) -> dict[str, tuple]:
    """Everything below a directory: type, size, times, inode and bytes."""
    found = {}
    for path in [directory, *sorted(directory.rglob("*"))]:
        stat = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        times = stat.st_mtime_ns, stat.st_ctime_ns
        found[str(path)] = (stat.st_mode, stat.st_size, stat.st_ino, times, content)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("command", READERS.values(), ids=READERS.keys())
def test_the_directory_is_as_it_was(command, models, watch, tmp_path, monkeypatch, capsys):
    if command.startswith("plan"):
        pytest.importorskip("libtpu")
    (tmp_path / "text.txt").write_text("held out words " * 50)
    (tmp_path / "tuned.toml").write_text(TUNED.format(out=tmp_path, **models))
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    monkeypatch.chdir(tmp_path)
    before = {name: snapshot(path) for name, path in models.items()}
    watch.attempts.clear()
    watch.roots = tuple(str(path) for path in models.values())
    try:
        code = main(command.format(out=tmp_path, **models).split())
    finally:
        watch.roots = ()
    shown = capsys.readouterr()
    assert watch.attempts == []
    assert {name: snapshot(path) for name, path in models.items()} == before
    assert code == 0, shown.err


def test_what_the_library_reads_stays_as_it_was(models, watch):
    from ziggurat.checkpoint import Checkpoints, StepReader, read_arrays

    before = {name: snapshot(path) for name, path in models.items()}
    watch.attempts.clear()
    watch.roots = tuple(str(path) for path in models.values())
    try:
        pretrained.load(models["hf"])
        pretrained.load(models["run"])
        pretrained_encoder.load(models["encoder"])
        pretrained_encoder.load(models["encoder_hf"])
        pretrained_pipeline.load(models["dit"])
        newest = StepReader(models["run"] / "checkpoints").latest()
        assert newest is not None
        read_arrays(newest.path, "params")
        assert Checkpoints(models["run"] / "checkpoints").latest() == newest
    finally:
        watch.roots = ()
    assert watch.attempts == []
    assert {name: snapshot(path) for name, path in models.items()} == before


def test_the_watch_sees_a_write(tmp_path, watch):
    """The test above can fail: what it watches for is refused and kept."""
    (tmp_path / "kept").mkdir()
    before = snapshot(tmp_path)
    watch.attempts.clear()
    watch.roots = (str(tmp_path),)
    try:
        for write in ((tmp_path / "new").mkdir, (tmp_path / "kept").rmdir):
            with pytest.raises(PermissionError):
                write()
    finally:
        watch.roots = ()
    assert len(watch.attempts) == 2
    assert snapshot(tmp_path) == before
    (tmp_path / "new").touch()
    assert snapshot(tmp_path) != before


def test_only_writers_open_a_directory_to_write():
    """Whoever only looks at steps uses ``StepReader``."""
    package = Path(ziggurat.__file__).parent
    found = {
        file.relative_to(package).as_posix()
        for file in package.rglob("*.py")
        if re.search(r"(?<!class )\bCheckpoints\(", file.read_text(encoding="utf-8"))
    }
    writers = {"disk_tier", "manager", "step_reader"}  # the last in its example
    writers = {f"checkpoint/{name}.py" for name in writers}
    assert found - writers == {"models/loading/step_files.py"}

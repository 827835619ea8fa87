"""Fine-tuning on conversations with images: against torch, packed rows against single ones, frozen
parts, adapters, checkpoints."""

import dataclasses
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.post import image_runs

from ziggurat import mesh
from ziggurat.core.errors import ConfigError
from ziggurat.core.pytrees import named_leaves
from ziggurat.models.conversion.text_part import part_of
from ziggurat.models.loading import pretrained, pretrained_vision_language
from ziggurat.train.experiment import prepare
from ziggurat.train.loop import train
from ziggurat.train.metrics import curve, read_metrics
from ziggurat.train.parts import kind_of

ALL = ("objective.freeze_vision_tower=false", "objective.freeze_multi_modal_projector=false")


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    directory = tmp_path_factory.mktemp("squares")
    return image_runs.write_records(directory)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    return image_runs.fresh("llava", tmp_path_factory.mktemp("fresh") / "llava")


def parts_of(run):
    return kind_of(run).parts(run, mesh.build(run.mesh, jax.devices()[:1]))


def gradients(parts, batch):
    """Loss, number of targets, and gradients of a batch."""

    def loss(params):
        sums = parts.program.sums(params, batch, parts.frozen)
        return sums.loss, sums.weight

    start, batch = jax.tree.map(jnp.asarray, (parts.start, batch))
    (value, weight), found = jax.jit(jax.value_and_grad(loss, has_aux=True))(start)
    return float(value), float(weight), found


def their_inputs(kind, record, prepared):
    """A record and its images as transformers takes them."""
    import torch

    ids = torch.tensor(record.ids[None].astype(np.int64))
    labels = torch.where(torch.tensor(record.learned[None] == 1), ids, -100)
    inputs: dict[str, Any] = {"input_ids": ids, "labels": labels}
    if kind == "gemma3":
        inputs["token_type_ids"] = (ids == 60).long()
    if kind in image_runs.QWENS:
        inputs["mm_token_type_ids"] = (ids == 60).int()
    if not prepared:
        return inputs
    if kind == "mistral3":
        shown, sizes = whole_pictures(prepared, side=4, merge=2)
        return inputs | {"pixel_values": torch.tensor(shown), "image_sizes": torch.tensor(sizes)}
    if kind not in image_runs.QWENS:
        return inputs | {"pixel_values": torch.tensor(np.stack([p.pixels for p in prepared]))}
    grids = torch.tensor([[1, *image.grid] for image in prepared])
    pixels = np.concatenate([image.pixels for image in prepared])
    return inputs | {"pixel_values": torch.tensor(pixels), "image_grid_thw": grids}


def whole_pictures(prepared, side, merge):
    """Pixels of images from their patches, padded on the right and below, and their sizes."""
    sizes = np.array([image.grid for image in prepared]) * side
    pixels = np.zeros((len(prepared), 3, *sizes.max(axis=0)), np.float32)
    for out, image, (high, wide) in zip(pixels, prepared, sizes):
        rows, columns = image.grid
        blocks = image.pixels.reshape(
            rows // merge, columns // merge, merge, merge, 3, side, side
        ).transpose(4, 0, 2, 5, 1, 3, 6)
        out[:, :high, :wide] = blocks.reshape(3, high, wide)
    return pixels, sizes


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["llava", "gemma3", "mistral3", "qwen2_5_vl", "qwen3_5"])
def test_loss_and_gradients_of_packed_rows_equal_torch(kind, squares, tmp_path):
    """All parts trained, in float32: mean loss within 2e-6, gradients within 2e-5 of the largest
    one."""
    pytest.importorskip("torch")
    model = image_runs.publish(kind, tmp_path / "model")
    more = (*ALL, "data.epochs=1", "data.sequence_length=64")
    parts = parts_of(image_runs.resolved(tmp_path / "model", squares, tmp_path, *more).value)
    data: Any = parts.data
    assert data.steps == 1
    batch = data.batch(0)
    assert batch["segment_ids"].max() > 1, "rows hold several records"
    assert not batch["segment_ids"][-1].any(), "behind the end of the data nothing stands"
    value, weight, found = gradients(parts, batch)

    whole = pretrained_vision_language.load(tmp_path / "model")
    expected = 0.0
    for record in data._records:
        prepared = whole.prepare([image.path for image in record.images])
        inputs = their_inputs(kind, record, prepared)
        count = int((inputs["labels"][:, 1:] != -100).sum())
        loss = model(**inputs).loss * count
        loss.backward()
        expected += loss.item()
    assert abs(value - expected) / weight < 2e-6
    ours = dataclasses.replace(whole, params=found["language"], tower=found["tower"])
    written = pretrained_vision_language.export_hf(ours, tmp_path / "ours")
    names = tensors(written)
    theirs = saved_gradients(model, tmp_path / "theirs")
    assert names.keys() <= theirs.keys()
    for name in theirs.keys() - names.keys():  # layers behind the one whose states LLaVA reads
        assert not theirs[name].any(), name
    largest = max(np.abs(theirs[name]).max() for name in theirs)
    assert largest > 1
    for name in names:
        expected = theirs[name]
        np.testing.assert_allclose(
            names[name], expected, atol=2e-5 * largest, rtol=0, err_msg=str(name)
        )
    towers = [found for (part, _), found in theirs.items() if part == "image"]
    assert max(np.abs(one).max() for one in towers) > 0


def saved_gradients(model, directory):
    """Gradients by the names under which transformers publishes the parameters."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            found = parameter.grad
            parameter.copy_(torch.zeros_like(parameter) if found is None else found)
    model.save_pretrained(directory)
    return tensors(directory)


def tensors(directory):
    """Tensors of a directory, by part and name without the prefixes that revisions differ in."""
    from safetensors.numpy import load_file

    [file] = directory.glob("*.safetensors")
    return {part_of(name): array for name, array in load_file(file).items()}


@pytest.mark.slow
def test_packed_rows_equal_single_ones(fresh, squares, tmp_path):
    """One row with several records has the losses and gradients of a row for each."""
    found = []
    for packing in ("first_fit", "none"):
        more = (*ALL, "data.epochs=1", f'data.packing={{kind="{packing}"}}')
        parts = parts_of(image_runs.resolved(fresh, squares, tmp_path, *more).value)
        batch = parts.data.batch(0)  # pyright: ignore[reportAttributeAccessIssue]
        assert (batch["segment_ids"].max() > 1) == (packing == "first_fit")
        found.append(gradients(parts, batch))
    (packed, weight, ours), (single, same, theirs) = found
    assert weight == same > 0
    assert abs(packed - single) < 1e-4 * weight
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4), ours, theirs)


@pytest.mark.slow
def test_images_are_not_learned_and_answers_are(fresh, squares, tmp_path):
    parts = parts_of(image_runs.resolved(fresh, squares, tmp_path).value)
    batch = parts.data.batch(0)  # pyright: ignore[reportAttributeAccessIssue]
    learned = batch["targets"][batch["loss_mask"] == 1]
    assert 60 not in learned
    assert set(learned.tolist()) <= {2, 40, 41, 42, 43, 30, 31, 32}
    for row, places in enumerate(batch["image_places"]):
        assert (batch["tokens"][row, places[places < 48]] == 60).all()


def same(found, expected):
    """Equal but for how adapters' products round on one device and on eight."""
    np.testing.assert_allclose(found, expected, atol=1e-7, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["language", "projector", "adapter"])
def test_frozen_parts_stay_and_the_checkpoint_is_whole(trained, fresh, squares, tmp_path):
    more = {
        "language": (),
        "projector": ("objective.freeze_language_model=true", ALL[1]),
        "adapter": ("adapter.rank=4", "adapter.alpha=8"),
    }[trained]
    resolved = image_runs.resolved(fresh, squares, tmp_path / trained, *more)
    outcome = train(resolved)
    before = pretrained_vision_language.load(fresh)
    after = pretrained_vision_language.load(resolved.value.directory)
    assert after.processor == before.processor
    moved = {
        name: not np.array_equal(leaf, other)
        for (name, leaf), other in zip(
            named_leaves({"language": before.params, "tower": before.tower}).items(),
            named_leaves({"language": after.params, "tower": after.tower}).values(),
        )
    }
    if trained == "projector":
        assert {name for name, is_ in moved.items() if is_} <= {
            name for name in moved if name.startswith("tower.projector.")
        }
        assert moved["tower.projector.up.kernel"]
    else:
        assert not any(is_ for name, is_ in moved.items() if name.startswith("tower."))
        assert moved["language.blocks.attention.query.kernel"]
    live: Any = outcome.model
    jax.tree.map(same, after.params, live.params)
    jax.tree.map(same, after.tower, live.tower)
    text = pretrained.load(resolved.value.directory)  # the language model alone
    jax.tree.map(np.testing.assert_array_equal, after.params, text.params)


@pytest.mark.chaos
def test_a_killed_run_ends_as_one_that_nobody_disturbed(fresh, squares, tmp_path):
    """SIGKILL behind a checkpoint: the same losses, parameters and frozen parts."""
    steps = ("train.steps=12", "checkpoint.every=2", "profile.trace=false")
    calm = image_runs.resolved(fresh, squares, tmp_path / "calm", *steps)
    train(calm)
    text = image_runs.TEXT.format(model=fresh, data=squares, output=tmp_path / "killed")
    (tmp_path / "run.toml").write_text(text)
    command = [str(Path(sys.executable).with_name("ziggurat")), "train", str(tmp_path / "run.toml")]
    command += [f"--{change}" for change in steps]
    directory = tmp_path / "killed" / "run"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        while process.poll() is None and not list(directory.glob("checkpoints/step_*[4-9]")):
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL, "it had ended before"
    subprocess.run(command, check=True, capture_output=True, timeout=300)

    def losses(directory):
        return curve(read_metrics(directory / "metrics.jsonl"), "loss")

    assert losses(directory) == losses(calm.value.directory)
    ends = map(pretrained_vision_language.load, (directory, calm.value.directory))
    jax.tree.map(np.testing.assert_array_equal, *((one.params, one.tower) for one in ends))


def test_what_does_not_fit_together_is_refused(fresh, squares, tmp_path):
    def refused(*overrides):
        with pytest.raises(ConfigError) as error:
            prepare(image_runs.resolved(fresh, squares, tmp_path, *overrides).value)
        return str(error.value)

    assert "freeze_vision_tower" in refused("adapter.rank=2", ALL[0])
    assert "every part" in refused("objective.freeze_language_model=true")
    assert "patches_per_row" in refused("data.patches_per_row=64")

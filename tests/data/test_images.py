"""Batches of images are a function of (configuration, seed, step)."""

import numpy as np
import pytest

from ziggurat.core import config
from ziggurat.core.errors import DataError
from ziggurat.data import Digits, ImageArrays, ImageData, ImageFolder, build_images, open_images
from ziggurat.data.image_grid import grid, png, write_png


@pytest.fixture
def arrays(tmp_path):
    """Thirteen images that are their own number, of three classes."""
    images = np.broadcast_to(np.arange(13, dtype=np.uint8)[:, None, None, None], (13, 4, 4, 1))
    np.savez(tmp_path / "numbers.npz", images=images, labels=np.arange(13) % 3)
    return tmp_path / "numbers.npz"


def dataset(path, seed=0, split="train", **settings):
    source = ImageArrays(path=path)
    return build_images(ImageData(**({"source": source, "batch_size": 4} | settings)), seed, split)


def numbers(batch):
    return np.round((batch["images"][:, 0, 0, 0] + 1) / 2 * 255).astype(int)


def test_each_epoch_holds_each_image_once_in_its_own_order(arrays):
    data = dataset(arrays)
    seen = np.concatenate([numbers(data.batch(step)) for step in range(13)])
    epochs = seen.reshape(4, 13)
    for epoch in epochs:
        assert sorted(epoch) == list(range(13))
    assert len({tuple(epoch) for epoch in epochs}) == 4
    batch = data.batch(7)
    assert (batch["labels"] == numbers(batch) % 3).all()
    assert batch["step"].tolist() == [7] * 4
    assert batch["index"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("settings", [{}, {"shift": 1, "flip": True}], ids=str)
def test_hosts_and_restarts_change_nothing(arrays, settings):
    data = dataset(arrays, **settings)
    whole = data.batch(5)
    halves = [data.batch(5, slice(0, 2)), data.batch(5, slice(2, 4))]
    resumed = next(dataset(arrays, **settings).iterate(5))
    for name, array in whole.items():
        np.testing.assert_array_equal(np.concatenate([h[name] for h in halves]), array)
        np.testing.assert_array_equal(resumed[name], array)
    assert not np.array_equal(numbers(dataset(arrays, seed=1).batch(5)), numbers(whole))


def test_the_last_batch_of_the_last_epoch_is_filled_with_rows_that_do_not_count(arrays):
    data = dataset(arrays, epochs=1)
    assert data.steps == 4
    batches = list(data.iterate(0))
    assert [batch["weight"].sum() for batch in batches] == [4, 4, 4, 1]
    counted = [numbers(b)[b["weight"] > 0] for b in batches]
    assert sorted(np.concatenate(counted)) == list(range(13))
    with pytest.raises(DataError, match=r"data for 4 steps.*raise data\.epochs"):
        data.batch(4)


def test_held_out_images_are_never_trained_on(arrays):
    settings = {"eval_fraction": 0.4, "epochs": 1, "batch_size": 1}
    train, held = (dataset(arrays, split=split, **settings) for split in ("train", "eval"))
    sides = [{int(numbers(b)[0]) for b in side.iterate(0)} for side in (train, held)]
    assert sides[0] | sides[1] == set(range(13))
    assert not sides[0] & sides[1]
    assert 2 <= len(sides[1]) <= 9
    assert held.batch(0)["step"][0] != train.batch(0)["step"][0]


def test_state_is_small_and_refuses_other_data(arrays, tmp_path):
    data = dataset(arrays)
    state = data.state(9)
    assert (state["epoch"], state["place"]) == (2, 10)
    assert len(str(state)) < 400
    assert dataset(arrays).check_state(state) == 9
    for settings in ({"batch_size": 8}, {"seed": 1}, {"flip": True}, {"shuffle": False}):
        with pytest.raises(DataError, match="data of the checkpoint"):
            dataset(arrays, **settings).check_state(state)
    np.savez(tmp_path / "x.npz", images=np.zeros((13, 4, 4)), labels=np.arange(13) % 3)
    with pytest.raises(DataError, match="content"):
        dataset(tmp_path / "x.npz").check_state(state)


def test_augmentation_moves_and_mirrors(tmp_path):
    image = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1)
    np.savez(tmp_path / "one.npz", images=image, labels=np.zeros(1, int))
    plain = open_images(ImageArrays(path=tmp_path / "one.npz")).read(np.array([0]))[0]
    data = dataset(tmp_path / "one.npz", flip=True, shift=1, batch_size=256)
    seen = {x.tobytes() for x in data.batch(0)["images"]}
    assert len(seen) == 18  # nine places, mirrored or not
    assert plain.tobytes() in seen
    assert np.ascontiguousarray(plain[:, ::-1]).tobytes() in seen
    assert plain[[0, 0, 1, 2]].tobytes() in seen


def test_digits_and_folders(tmp_path):
    digits = open_images(Digits())
    assert (digits.count, digits.shape, len(digits.classes)) == (1797, (8, 8, 1), 10)
    every = digits.read(np.arange(1797))
    assert (every.min(), every.max()) == (-1, 1)
    for name, value in (("cat", 0.0), ("dog", 1.0)):
        write_png(tmp_path / "pets" / name / "a.png", grid(np.full((1, 6, 9, 3), value), columns=1))
    folder = open_images(ImageFolder(path=tmp_path / "pets", image_size=4, channels=1))
    assert folder.classes == ("cat", "dog")
    images = folder.read(np.array([1, 0]))
    assert images.shape == (2, 4, 4, 1)
    assert images[0, 2, 2, 0] > 0.99
    assert images[1, 2, 2, 0] < -0.9


def test_bad_images_are_named(tmp_path):
    def opened(**settings):
        return open_images(config.from_plain(ImageArrays, {"path": tmp_path / "x.npz"} | settings))

    with pytest.raises(DataError, match="no such file"):
        opened()
    np.savez(tmp_path / "x.npz", images=np.zeros((3, 4, 4)), labels=np.zeros(2, int))
    with pytest.raises(DataError, match=r"images \[3, 4, 4, 1\], labels \[2\]"):
        opened()
    with pytest.raises(DataError, match=r"an \.npz file with pixels and labels"):
        opened(images="pixels")
    np.savez(tmp_path / "x.npz", images=np.full((2, 4, 4), 3.0), labels=np.zeros(2, int))
    with pytest.raises(DataError, match=r"from 3\.0 to 3\.0; expected bytes, or floats of 0 to 1"):
        opened()
    with pytest.raises(DataError, match="no such directory"):
        open_images(ImageFolder(path=tmp_path / "no", image_size=4))
    (tmp_path / "pets" / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match="class cat: found no images"):
        open_images(ImageFolder(path=tmp_path / "pets", image_size=4))
    (tmp_path / "pets" / "cat" / "a.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"image .*a\.png"):
        open_images(ImageFolder(path=tmp_path / "pets", image_size=4)).read(np.array([0]))
    assert png(np.zeros((2, 2, 3), np.uint8)).startswith(b"\x89PNG")

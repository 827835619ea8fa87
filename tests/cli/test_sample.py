"""``ziggurat sample`` and ``bundle images``: the same class and seed give the same image."""

import jax
import numpy as np
import pytest
from PIL import Image

from ziggurat.cli.main import main
from ziggurat.models import DiffusionModel, DitConfig
from ziggurat.models.diffusion import RectifiedFlow
from ziggurat.models.image_pipeline import ImagePipeline, PipelineComponents
from ziggurat.models.loading import pretrained_pipeline

DIT = DitConfig(
    image_size=8, channels=1, classes=3, patch_size=4, d_model=16, n_layers=1, n_heads=2
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A checkpoint of random weights that draws something."""
    made = DiffusionModel.build(DIT)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: (0.3 * rng.standard_normal(leaf.shape)).astype(np.float32), made.abstract
    )
    around = PipelineComponents.of(RectifiedFlow(), labels=("ant", "bee", "cat"))
    pipeline = ImagePipeline(made, {"params": params}, around, None, "random", "test")
    directory = tmp_path_factory.mktemp("model")
    pretrained_pipeline.save(pipeline, directory)
    return directory


@pytest.fixture(scope="module")
def drawn(model):
    """Four images of each class in one batch."""
    path = model / "drawn.npz"
    assert main(["sample", str(model), "--count", "4", "--steps", "3", "--images", str(path)]) == 0
    with np.load(path) as file:
        return dict(file)


def test_all_classes_are_drawn_by_default(drawn):
    assert drawn["images"].shape == (12, 8, 8, 1)
    assert drawn["labels"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert drawn["seeds"].tolist() == list(range(12))
    assert 0 <= drawn["images"].min() < drawn["images"].max() <= 1
    assert np.abs(drawn["images"][0] - drawn["images"][1]).max() > 0.01


def test_batch_and_company_change_no_image(model, drawn, tmp_path, capsys):
    file, picture = tmp_path / "b.npz", tmp_path / "b.png"
    options = ["--count", "14", "--steps", "3", "--batch", "12", "--seed", "4"]
    where = ["--images", str(file), "--grid", str(picture)]
    assert main(["sample", str(model), "--class", "bee", *options, *where]) == 0
    with np.load(file) as again:
        assert again["seeds"].tolist() == list(range(4, 18))
        np.testing.assert_allclose(again["images"][:4], drawn["images"][4:8], atol=1e-5)
    assert "14 images of 1 class in" in capsys.readouterr().out
    with Image.open(picture) as opened:
        assert opened.size == (14 * 50 + 2, 50 + 2)
        pixels = np.asarray(opened)[2:50, 2:50]
    tile = np.round(drawn["images"][4, :, :, 0] * 255).repeat(6, 0).repeat(6, 1)
    assert np.abs(pixels - tile).max() <= 1


@pytest.mark.slow
def test_a_bundle_draws_what_the_verb_draws(model, drawn, tmp_path, capsys):
    from ziggurat.serve.predict import LoadedBundle

    path = tmp_path / "digits" / "1"
    given = ["bundle", "images", str(model), str(path), "--steps", "3", "--platforms", "cpu"]
    assert main(given) == 0
    assert "image:FP32[b,8,8,1]" in capsys.readouterr().out
    bundle = LoadedBundle.load(path)
    labels = bundle.manifest.labels
    assert (labels["sampler"], labels["classes"]) == ("euler", "ant,bee,cat")
    rows = np.array([9, 2, 5, 0, 6])
    label, seed = (drawn[name][rows] for name in ("labels", "seeds"))
    found = bundle({"label": label, "seed": seed})["image"]
    np.testing.assert_allclose(found, drawn["images"][rows], atol=1e-5)
    nothing = bundle({"label": np.array([7], np.int32), "seed": np.array([0], np.int32)})
    assert np.isnan(nothing["image"]).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "sample: found neither --grid nor --images"),
        (("--grid", "x.jpg"), "--grid: found x.jpg; expected a name that ends with .png"),
        (("--grid", "x.png", "--class", "dog"), "class: found 'dog'; expected 0 to 2, or one of"),
        (("--grid", "x.png", "--sampler", "ddim"), "ddim, for a model of rectified flow"),
        (("--grid", "x.png", "--eta", "0.5"), "eta: found 0.5, expected nothing: it is for ddim"),
        (("--grid", "x.png", "--count", "0"), "--count: found 0; expected a number >= 1"),
    ],
)
def test_bad_options_are_named(options, said, model, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["sample", str(model), *options]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_other_verbs_say_what_it_is(model, capsys):
    assert main(["generate", str(model), "--prompt", "x"]) == 2
    said = "found a diffusion model (dit); expected a language model; it draws: ziggurat sample"
    assert said in capsys.readouterr().err


def test_what_is_no_diffusion_model_is_refused(tmp_path, capsys):
    assert main(["sample", str(tmp_path), "--grid", str(tmp_path / "x.png")]) == 2
    assert "neither checkpoints nor diffusers'" in capsys.readouterr().err

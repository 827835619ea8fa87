"""``ziggurat quantize``: a small model quantised, read back by other commands, and mistakes."""

import re

import jax
import numpy as np
import pytest

from ziggurat.cli.main import main
from ziggurat.data.tokenizers import byte_level
from ziggurat.models import LanguageModel, LlamaConfig
from ziggurat.models.loading import pretrained
from ziggurat.models.quantized import dequantized, formats_of
from ziggurat.nn.precision import Precision

RECIPE = """
[[rules]]
module_path = "blocks/mlp/.*"
weight = "nf4"
tile_size = 16

[[rules]]
module_path = "blocks/attention/.*"
weight = "int8"
activation = "int8"
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    config = LlamaConfig(
        vocab_size=257, d_model=32, n_layers=2, n_heads=4, max_sequence_length=64, init_std=0.3
    )
    model = LanguageModel.build(config)
    params = model.init(jax.random.key(0))
    directory = tmp_path_factory.mktemp("model") / "tiny"
    pretrained.save(pretrained.Pretrained(model, params, byte_level(), "tiny", ""), directory)
    return directory


@pytest.fixture(scope="module")
def small(saved, tmp_path_factory):
    recipe = tmp_path_factory.mktemp("recipe") / "mine.toml"
    recipe.write_text(RECIPE)
    output = tmp_path_factory.mktemp("small") / "small"
    command = ["quantize", str(saved), "--recipe", str(recipe), "--output", str(output)]
    assert main([*command, "--report", "--tokens", "100"]) == 0
    return output


@pytest.mark.slow
def test_what_was_written_is_read_and_generated_from(small, capsys):
    loaded = pretrained.load(small)
    kinds = {name.split(".")[1]: f.weight for name, f in formats_of(loaded.params).items()}
    assert kinds == {"mlp": "nf4", "attention": "int8"}
    assert "blocks/mlp/down" in (small / "report.html").read_text()
    command = ["generate", str(small), "--prompt", "ab", "--max-tokens", "4"]
    assert main([*command, "--temperature", "0"]) == 0
    assert capsys.readouterr().out
    assert main(["checkpoints", str(small), "--verify"]) == 0
    assert "verified" in capsys.readouterr().out


@pytest.mark.slow
def test_a_budget_gives_a_recipe_that_the_checkpoint_keeps(saved, tmp_path, capsys):
    """The recipe's file makes the same weights again."""
    (tmp_path / "text").write_text("The quick brown fox jumps over the lazy dog. " * 8)
    command = ["quantize", str(saved), "--within-perplexity", "3%", "--tokens", "128"]
    command += ["--text", str(tmp_path / "text"), "--output", str(tmp_path / "mixed"), "--report"]
    assert main([*command, "--formats", "int4", "nf4"]) == 0
    said = capsys.readouterr().out
    assert "each module alone" in said
    share = float(re.search(r"perplexity: .*\(([-+.\d]+)%\)", said)[1])
    assert share <= 3
    assert "Search for the recipe" in (tmp_path / "mixed" / "report.html").read_text()
    recipe = tmp_path / "mixed" / "step_00000000" / "recipe.toml"
    again = ["quantize", str(saved), "--recipe", str(recipe), "--output", str(tmp_path / "again")]
    assert main(again) == 0
    first, second = (
        pretrained.load(tmp_path / name, precision=Precision(as_stored=True)).params
        for name in ("mixed", "again")
    )
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_what_stays_a_float_keeps_its_type(saved, tmp_path):
    stored = pretrained.load(saved)
    half = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), stored.params)
    narrow = pretrained.Pretrained(stored.model, half, stored.tokenizer, "half", "")
    pretrained.save(narrow, tmp_path / "half")
    (tmp_path / "r.toml").write_text(RECIPE)
    command = ["quantize", str(tmp_path / "half"), "--recipe", str(tmp_path / "r.toml")]
    assert main([*command, "--output", str(tmp_path / "small")]) == 0
    found = pretrained.load(tmp_path / "small", precision=Precision(as_stored=True)).params
    assert found["embedding"]["table"].dtype == "bfloat16"
    assert found["blocks"]["mlp"]["up"]["kernel"].scale.dtype == "float32"


def test_export_writes_floats_again_and_says_so(small, tmp_path, caplog):
    loaded = pretrained.load(small)
    with caplog.at_level("WARNING"):
        pretrained.export_hf(loaded, tmp_path / "hf")
    assert "7 quantised weights" in caplog.text
    again = pretrained.load(tmp_path / "hf")
    tokens = np.arange(8)[None]
    run = jax.jit(again.model.logits)
    expected = run(dequantized(loaded.params), tokens)
    np.testing.assert_array_equal(run(again.params, tokens), expected)


@pytest.mark.slow
def test_calibrated(saved, tmp_path, capsys):
    """The record of the step says how; the same command gives the same weights."""
    (tmp_path / "text").write_text("The quick brown fox jumps over the lazy dog. " * 40)
    (tmp_path / "r.toml").write_text(RECIPE)
    command = ["quantize", str(saved), "--recipe", str(tmp_path / "r.toml"), "--method", "gptq"]
    command += ["--calibration", str(tmp_path / "text"), "--calibration-tokens", "256"]
    command += ["--calibration-length", "32", "--seed", "3", "--damping", "0.02"]
    for name in ("a", "b"):
        assert main([*command, "--output", str(tmp_path / name)]) == 0
    first, second = (
        pretrained.load(tmp_path / name).params["blocks"]["mlp"]["up"]["kernel"].qvalue
        for name in ("a", "b")
    )
    np.testing.assert_array_equal(first, second)
    record = (tmp_path / "a" / "step_00000000" / "records.json").read_text()
    assert '"gptq"' in record
    assert '"seed": 3' in record


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--recipe", "int4", "--method", "gptq"], "add --calibration PATH"),
        (["--recipe", "int4", "--calibration", "x"], "no text for the method rtn"),
        (["--recipe", "int4", "--method", "mse", "--damping", "0.1"], "not mse"),
        (["--recipe", "int4", "--calibration-length", "8"], "--calibration-length: found 8"),
        (
            ["--recipe", "int8", "--method", "gptq", "--calibration", "x", "--damping", "0"],
            "damping: found 0",
        ),
        (["--recipe", "int4", "--method", "awk"], "method: found 'awk'"),
        (
            ["--recipe", "int8", "--method", "smoothquant", "--calibration", "{text}"],
            "int8 weights with float activations; expected quantised activations",
        ),
        (
            ["--recipe", "nf4", "--method", "autoround", "--calibration", "{text}"],
            "nf4 weights; expected int4 or int8",
        ),
        (["--recipe", "int4", "--method", "awq", "--iterations", "9"], "add --method autoround"),
        (["--recipe", "int5"], "did you mean int8?"),
        ([], "found no recipe; expected --recipe or --within-perplexity"),
        (["--recipe", "int8", "--within-perplexity", "2%"], "a recipe too, int8"),
        (["--within-perplexity", "2"], "a share between 0 and 1, such as 0.02 or 2%"),
        (["--within-perplexity", "two"], "a share such as 2% or 0.02"),
        (["--within-perplexity", "2%", "--formats", "w8a8"], "whose activations stay floats"),
        (["--recipe", "int8", "--formats", "nf4"], "--within-perplexity with them"),
        (["--recipe", "int8", "--tokens", "9"], "--report with them"),
        (["--recipe", "int8", "--report", "--tokens", "0"], "--tokens: found 0"),
    ],
)
def test_mistakes(args, says, saved, tmp_path, capsys):
    (tmp_path / "text").write_text("word " * 2000)
    args = [arg.format(text=tmp_path / "text") for arg in args]
    assert main(["quantize", str(saved), *args, "--output", str(tmp_path / "out")]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_output_that_holds_something_is_refused_at_once(saved, tmp_path, capsys):
    (tmp_path / "note").write_text("mine")
    assert main(["quantize", str(saved), "--recipe", "int8", "--output", str(tmp_path)]) == 2
    assert "it is not empty" in capsys.readouterr().err

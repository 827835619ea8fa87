"""``ziggurat eval``: a small model on a task, a file of prompts and a text; and mistakes."""

import json

import jax
import pytest

from ziggurat.cli.main import main
from ziggurat.data.tokenizers import byte_level
from ziggurat.models import LanguageModel, LlamaConfig
from ziggurat.models.loading import pretrained


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    config = LlamaConfig(vocab_size=257, d_model=32, n_layers=1, n_heads=4, init_std=0.3)
    model = LanguageModel.build(config)
    params = model.init(jax.random.key(0))
    directory = tmp_path_factory.mktemp("model") / "tiny"
    pretrained.save(pretrained.Pretrained(model, params, byte_level(), "tiny", ""), directory)
    return str(directory)


@pytest.mark.slow
def test_a_task_and_a_text_with_their_figures(saved, tmp_path, capsys):
    text, figures = tmp_path / "text.txt", tmp_path / "figures.json"
    text.write_text("held out " * 200)
    asked = ["--task", "chain_sum", "--settings", "max_terms=2", "max_digits=1", "--problems", "4"]
    asked += ["--max-tokens", "4", "--text", str(text), "--tokens", "100"]
    assert main(["eval", saved, *asked, "--json-file", str(figures)]) == 0
    shown = capsys.readouterr().out
    assert "eval_pass_at_1" in shown
    found = json.loads(figures.read_text())
    assert found["eval_problems"] == 4
    assert found["eval_pass_at_1_low"] == 0 < found["eval_pass_at_1_high"] < 1
    assert found["eval_completion_tokens"] <= 4
    assert 3 < found["eval_loss"] < 30


def test_prompts_of_a_file_are_judged_by_a_function(saved, tmp_path):
    (tmp_path / "mine.py").write_text("def good(prompt, completion, row):\n    return row['n']\n")
    lines = [f'{{"prompt": "{n}", "n": {n % 2}}}' for n in range(4)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    asked = ["--task", str(tmp_path / "prompts.jsonl"), "--reward", f"{tmp_path}/mine.py:good"]
    asked += ["--samples", "2", "--k", "2", "--temperature", "1", "--max-tokens", "2"]
    figures = tmp_path / "figures.json"
    assert main(["eval", saved, *asked, "--json-file", str(figures)]) == 0
    found = json.loads(figures.read_text())
    assert found["eval_pass_at_1"] == found["eval_pass_at_2"] == found["eval_reward"] == 0.5


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ([], "no run file beside it"),
        (["--task", "chain_sum", "--reward", "exact"], "for .jsonl files only"),
        (["--task", "some.jsonl"], "no --reward"),
        (["--task", "chainsum"], "did you mean chain_sum"),
        (["--task", "chain_sum", "--samples", "2"], "a temperature above 0"),
        (["--task", "chain_sum", "--settings", "max_terms"], "KEY=VALUE"),
    ],
)
def test_mistakes_are_one_line(saved, capsys, asked, said):
    assert main(["eval", saved, *asked]) == 2
    assert said in capsys.readouterr().err

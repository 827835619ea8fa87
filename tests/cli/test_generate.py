"""``ziggurat generate`` and ``ziggurat chat`` on a small saved model."""

import io
import sys

import jax
import pytest

from ziggurat.cli import chat, generate, main
from ziggurat.data.tokenizers import byte_level
from ziggurat.models import LanguageModel, LlamaConfig
from ziggurat.models.loading import pretrained
from ziggurat.serve.llm import LLM, SamplingParams
from ziggurat.serve.llm.generation_defaults import sampling_defaults

TEMPLATE = "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}{% endfor %}<a>"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model") / "tiny"
    config = LlamaConfig(
        vocab_size=257, d_model=32, n_layers=2, n_heads=4, max_sequence_length=128, init_std=0.3
    )
    model = LanguageModel.build(config)
    tokenizer = byte_level()
    tokenizer.chat_templates["default"] = TEMPLATE
    params = model.init(jax.random.key(0))
    made = pretrained.Pretrained(model, params, tokenizer, "tiny", "a test")
    pretrained.save(made, directory)
    return directory


@pytest.fixture
def commands(monkeypatch):
    for name in ("generate", "chat"):
        monkeypatch.setitem(main.COMMANDS, name, "a command of this test")


@pytest.fixture(scope="module")
def expected(saved):
    """Texts of the library for what the commands are asked."""
    with LLM(saved) as llm:
        greedy = SamplingParams(temperature=0, max_tokens=12)
        drawn = SamplingParams(seed=5, max_tokens=12, top_k=9)
        user = [{"role": "user", "content": "hi"}]
        first = llm.chat(user, greedy).text
        more = [*user, {"role": "assistant", "content": first}, {"role": "user", "content": "ho"}]
        system = [{"role": "system", "content": "S"}]
        return {
            "greedy": llm.generate("ab", greedy)[0].text,
            "drawn": llm.generate("ab", drawn)[0].text,
            "first": first,
            "second": llm.chat(more, greedy).text,
            "system": llm.chat([*system, *user], greedy).text,
        }


@pytest.mark.slow
def test_generate_continues_the_prompt(saved, expected, capsys):
    options = ["--prompt", "ab", "--max-tokens", "12"]
    assert generate.main([str(saved), *options, "--temperature", "0"]) == 0
    assert capsys.readouterr().out == expected["greedy"] + "\n"
    assert generate.main([str(saved), *options, "--seed", "5", "--top-k", "9"]) == 0
    assert capsys.readouterr().out == expected["drawn"] + "\n"


def test_generate_reads_standard_input_and_answers_as_a_chat(saved, expected, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("hi\n"))
    assert generate.main([str(saved), "--chat", "--max-tokens", "12", "--temperature", "0"]) == 0
    assert capsys.readouterr().out == expected["first"] + "\n"


def test_chat_keeps_and_forgets_the_conversation(saved, expected, capsys, monkeypatch):
    lines = "hi\n\nho\n/reset\nhi\n/what\n/exit\nnever\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    assert chat.main([str(saved), "--max-tokens", "12", "--temperature", "0"]) == 0
    shown = capsys.readouterr()
    first, second = expected["first"], expected["second"]
    assert shown.out == f"{first}\n{second}\n{first}\n"
    assert shown.err == "error: command: found /what; expected /reset or /exit\n"


def test_chat_with_a_system_prompt_ends_with_its_input(saved, expected, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("hi"))
    options = ["--system", "S", "--max-tokens", "12", "--temperature", "0"]
    assert chat.main([str(saved), *options]) == 0
    assert capsys.readouterr().out == expected["system"] + "\n"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["generate", "{saved}-x", "--prompt", "a"], "no such file or directory"),
        (["generate", "{saved}", "--prompt", ""], "prompt: found no tokens"),
        (["generate", "{saved}", "--prompt", "a" * 200], "context: found 200 prompt tokens"),
        (["generate", "{saved}", "--temperature", "-1"], "temperature: found -1.0"),
        (["generate", "{saved}", "--prompt", "a", "--max-sequence-length", "999"],
         "max_sequence_length: found 999; expected at most 128"),
        (["generate", "{saved}", "--prompt", "a", "--max-sequence-length", "0"],
         "max_sequence_length: found 0, expected a number >= 1"),
        (["generate", "{saved}", "--prompt", "ab", "--image", "x.png"],
         "found a model that reads no images"),
        (["chat", "{saved}-x"], "no such file or directory"),
    ],
)  # fmt: skip
def test_errors_are_one_line_and_exit_2(saved, commands, args, said, capsys):
    assert main.main([arg.replace("{saved}", str(saved)) for arg in args]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert said in shown.err
    assert shown.err.count("\n") == 1


@pytest.mark.parametrize("module", [generate, chat])
def test_help_has_an_example(module, capsys):
    with pytest.raises(SystemExit) as stop:
        module.main(["--help"])
    assert stop.value.code == 0
    assert "example:" in capsys.readouterr().out


def test_a_models_own_sampling_is_the_default(saved, expected, tmp_path, capsys):
    made = pretrained.load(saved)
    made.tokenizer.generation_config.update(top_k=1, temperature=0.9, max_new_tokens=2)
    kept = tmp_path / "recommended"
    pretrained.save(made, kept)
    assert generate.main([str(kept), "--prompt", "ab", "--max-tokens", "12", "--seed", "5"]) == 0
    assert capsys.readouterr().out == expected["greedy"] + "\n"
    drawn = ["--prompt", "ab", "--max-tokens", "12", "--seed", "5", "--top-k", "9"]
    assert generate.main([str(kept), *drawn, "--generation-config", "none"]) == 0
    assert capsys.readouterr().out == expected["drawn"] + "\n"


@pytest.mark.parametrize(
    ("generation", "defaults"),
    [
        ({}, {}),
        ({"temperature": 0.6, "top_p": 0.95, "top_k": 20, "do_sample": True},
         {"temperature": 0.6, "top_p": 0.95, "top_k": 20}),
        ({"temperature": 1.0, "top_k": 0, "top_p": None, "repetition_penalty": 1.05},
         {"repetition_penalty": 1.05}),
        ({"temperature": -1, "top_p": "x", "top_k": 2.5, "min_p": float("nan")}, {}),
        ({"eos_token_id": [1, 2], "max_new_tokens": 9, "transformers_version": "5"}, {}),
    ],
)  # fmt: skip
def test_sampling_defaults_of_a_generation_config(generation, defaults):
    assert sampling_defaults(generation) == defaults

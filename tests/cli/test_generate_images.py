"""``ziggurat generate --image``: the tokens of transformers and of the library, and refusals."""

import pytest
from tests.models.families.test_qwen_vl import directory_of, loaded
from tests.oracle import qwen_vl

from ziggurat.cli import generate, main

CASE = "qwen3_vl"
OPTIONS = ("--temperature", "0", "--max-tokens", str(qwen_vl.NEW), "--max-sequence-length", "128")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The pictures as files."""
    from PIL import Image

    home = tmp_path_factory.mktemp("pictures")
    paths = [home / f"{number}.png" for number in range(2)]
    for path, pixels in zip(paths, qwen_vl.pictures()):
        Image.fromarray(pixels).save(path)
    return paths


def test_a_prompt_with_a_picture_is_continued_as_transformers_does(files, capsys):
    prompt = qwen_vl.CONVERSATIONS["one"].replace("{0}", "<begin> <image> <end>")
    answer = qwen_vl.load(CASE).answers["one"][1].tolist()
    kept = answer[: answer.index(2)]  # up to the end token
    args = [str(directory_of(CASE)), "--prompt", prompt, "--image", str(files[0]), *OPTIONS]
    assert generate.main(args) == 0
    assert capsys.readouterr().out.strip() == loaded(CASE).tokenizer.decode(kept)


def test_a_message_with_two_pictures_is_answered_as_by_the_library(files, capsys):
    whole = loaded(CASE)
    expected = whole.answer("t5 t6", files, max_new_tokens=qwen_vl.NEW)
    args = [str(directory_of(CASE)), "--chat", "--prompt", "t5 t6", *OPTIONS]
    assert generate.main([*args, "--image", str(files[0]), "--image", str(files[1])]) == 0
    assert capsys.readouterr().out.strip() == expected
    assert whole.answer("t5 t6", files[::-1], max_new_tokens=qwen_vl.NEW) != expected


def test_what_is_no_picture_or_has_no_place_is_refused(files, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(main.COMMANDS, "generate", "a command of this test")
    for prompt, image, said in (
        ("<image>", str(tmp_path / "none.png"), "none.png: found no such file"),
        ("t5 t6", str(files[0]), "found 0 times '<image>'; expected 1, one for each image"),
    ):
        args = [str(directory_of(CASE)), "--prompt", prompt, "--image", image, *OPTIONS]
        assert main.main(["generate", *args]) == 2
        shown = capsys.readouterr()
        assert said in shown.err
        assert shown.err.count("\n") == 1

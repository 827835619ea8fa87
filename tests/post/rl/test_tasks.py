"""Problems by number: always the same, held-out ones never trained on, errors with places."""

import numpy as np
import pytest

from ziggurat.core.errors import ConfigError, DataError, ZigguratError
from ziggurat.post.rl import tasks
from ziggurat.post.rl.config import (
    Problems,
    PromptFile,
    PromptForm,
    ReasoningGym,
)


def small_task(held_out=20, **settings):
    """Sums of two digits: a hundred questions, so that parts would meet by chance."""
    settings = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1} | settings
    return ReasoningGym(name="chain_sum", settings=settings, held_out=held_out)


def test_held_out_problems_are_never_trained_on():
    task = tasks.build(small_task())
    held = {task.problem(i, "held_out").prompt for i in range(20)}
    trained = [task.problem(i).prompt for i in range(300)]
    assert not held & set(trained)
    assert len(set(trained)) > 100
    again = tasks.build(small_task())
    assert [again.problem(i).prompt for i in range(300)] == trained


def test_a_task_that_is_all_held_out_is_refused():
    task = tasks.build(small_task(200, min_terms=1, max_terms=1))  # ten questions
    with pytest.raises(DataError, match="held out too"):
        task.problem(0)
    with pytest.raises(ConfigError, match="task chain_sum"):
        tasks.build(small_task(nothing=1))
    with pytest.raises(ConfigError, match="did you mean chain_sum"):
        tasks.build(ReasoningGym(name="chainsum"))


def prompt_file(tmp_path, lines, **more):
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(lines))
    return PromptFile(**{"path": path, "reward": "exact", "held_out": 2} | more)


def test_a_file_is_shuffled_anew_in_every_epoch(tmp_path):
    lines = [f'{{"prompt": "{n}?", "answer": "{n}", "n": {n}}}' for n in range(9)]
    task = tasks.build(prompt_file(tmp_path, lines))
    assert [task.problem(i, "held_out").row["n"] for i in range(task.held_out)] == [7, 8]
    data = Problems(task=prompt_file(tmp_path, lines), batch_size=4, sequence_length=8)
    source = tasks.ProblemSource(task, data, group=2, seed=1)
    numbers = np.concatenate([source.batch(step)["problems"] for step in range(14)])
    epochs = numbers.reshape(4, 7)
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    several = tasks.ProblemSource(task, data, group=2, seed=1, updates=2)
    assert several.batch(5)["problems"].tolist() == source.batch(2)["problems"].tolist()
    assert source.check_state(source.state(3)) == 3
    other = tasks.build(prompt_file(tmp_path, [line.replace("?", "!") for line in lines]))
    with pytest.raises(DataError, match="problems of the checkpoint"):
        tasks.ProblemSource(other, data, group=2, seed=1).check_state(source.state(3))
    with pytest.raises(ConfigError, match=r"objective\.group"):
        tasks.ProblemSource(task, data, group=3, seed=1)
    alike = tasks.build(prompt_file(tmp_path, [lines[0]] * 5))
    with pytest.raises(DataError, match="all held out"):
        tasks.ProblemSource(alike, data, group=2, seed=1)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (['{"prompt": "a", "answer": "b"}', "nonsense"], "line 2"),
        (['{"prompt": "a"}'], "line 1.*prompt and answer"),
        (['{"prompt": 5, "answer": "b"}'], "line 1.*a string"),
    ],
)
def test_a_bad_file_is_told_by_line(tmp_path, lines, said):
    with pytest.raises(DataError, match=said):
        tasks.build(prompt_file(tmp_path, lines))


def test_prompts_take_the_form_of_the_run_file(tokenizer):
    form = PromptForm(template="Q: {question}\nA:")
    assert tokenizer.decode(tasks.prompt_ids(form, tokenizer, "1+1")) == "Q: 1+1\nA:"
    chat = PromptForm(chat=True, system="Be brief.")
    with pytest.raises(ZigguratError, match="chat template"):
        tasks.prompt_ids(chat, tokenizer, "1+1")
    tokenizer.chat_templates["default"] = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    )
    try:
        text = tokenizer.decode(tasks.prompt_ids(chat, tokenizer, "1+1"))
    finally:
        del tokenizer.chat_templates["default"]
    assert text == "<system>Be brief.<user>1+1<assistant>"

"""Pairs and labelled answers: what records may say, and batches that are functions of the step."""

import json

import numpy as np
import pytest

from ziggurat.core.errors import ConfigError, DataError
from ziggurat.data import (
    DataConfig,
    HuggingFaceDataset,
    HuggingFaceTokenizer,
    JsonLines,
    Mixture,
    build,
    build_answers,
    byte_level,
    read,
)
from ziggurat.data.sources import views

EOS = 256
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}<assistant>{% endif %}"


def pairs(count=10):
    return [{"prompt": f"p{n}:", "chosen": f"yes{n}", "rejected": f"n{n}"} for n in range(count)]


def write(directory, records, name="data.jsonl"):
    path = directory / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def config(path, content, **settings):
    source = JsonLines(path=path, content=content)
    return DataConfig(**{"sources": (source,), "sequence_length": 12, "batch_size": 4} | settings)


def chat_tokenizer():
    settings = {"eos_token": byte_level().settings["eos_token"]}
    return HuggingFaceTokenizer(
        byte_level().backend, settings, chat_templates={"default": TEMPLATE}
    )


def learned_text(rows, prefix, row):
    """The targets that count, as text."""
    targets = rows[f"{prefix}targets"][row][rows[f"{prefix}loss_mask"][row] > 0]
    return "".join("$" if t == EOS else chr(t) for t in targets)


def test_a_pair_has_one_row_and_only_its_answers_are_learned(tmp_path):
    data = build_answers(
        config(write(tmp_path, pairs()), "preference"), byte_level(), 0, tmp_path, "preference"
    )
    rows = data.batch(0)
    assert rows["chosen_tokens"].shape == rows["rejected_loss_mask"].shape == (4, 12)
    for row, held in enumerate(data.documents(0)):
        number = held[0].record - 1
        assert [one.component for one in held] == ["chosen", "rejected"]
        assert learned_text(rows, "chosen_", row) == f"yes{number}$"
        assert learned_text(rows, "rejected_", row) == f"n{number}$"
        assert bytes(rows["chosen_tokens"][row][:3].tolist()).decode() == f"p{number}:"


def test_every_record_stands_in_each_epoch_once_whoever_asks(tmp_path):
    made = config(write(tmp_path, pairs(10)), "preference", epochs=2, prefetch=0)
    data = build_answers(made, byte_level(), 5, tmp_path, "preference")
    assert (data.steps, data.steps_per_epoch, data.rows_per_epoch) == (5, 3, 10)
    whole = [data.batch(step) for step in range(5)]
    seen = [held[0].record for step in range(5) for held in data.documents(step)]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(1, 11))
    assert seen[:10] != seen[10:]
    for step, (one, again) in enumerate(zip(whole, data.iterate(0), strict=True)):
        halves = [data.batch(step, slice(0, 1)), data.batch(step, slice(1, 4))]
        for name, values in one.items():
            np.testing.assert_array_equal(values, again[name])
            np.testing.assert_array_equal(values, np.concatenate([h[name] for h in halves]))
    assert data.check_state(json.loads(json.dumps(data.state(3)))) == 3
    other = build_answers(made, byte_level(), 6, tmp_path, "preference")
    with pytest.raises(DataError, match="found seed 6; expected seed 5"):
        other.check_state(data.state(3))
    with pytest.raises(DataError, match="step 5: found data for 5 steps"):
        data.batch(5)


def test_workers_make_the_same_batches(tmp_path):
    path = write(tmp_path, pairs(10))
    here, there = (
        build_answers(
            config(path, "preference", epochs=1, workers=workers),
            *(byte_level(), 5, tmp_path, "preference"),
        )
        for workers in (0, 1)
    )
    for ours, theirs in zip(here.iterate(0), there.iterate(0), strict=True):
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name])


def test_labelled_answers_and_the_answers_of_others(tmp_path):
    records = [{"prompt": f"p{n}:", "completion": f"c{n}", "label": n % 3 > 0} for n in range(5)]
    made = config(write(tmp_path, records), "labelled", epochs=1, batch_size=3)
    data = build_answers(made, byte_level(), 0, tmp_path, "labelled")
    seen = set()
    for step in range(2):
        rows, held = data.batch(step), data.documents(step)
        count = sum(map(bool, held))
        for row in range(count):
            (own,), (next_,) = held[row], held[(row + 1) % count]
            number = own.record - 1
            assert rows["desirable"][row, 0] == (number % 3 > 0)
            assert learned_text(rows, "", row) == f"c{number}$"
            assert learned_text(rows, "other_", row) == f"c{next_.record - 1}$"
            assert bytes(rows["other_tokens"][row][:3].tolist()).decode() == f"p{number}:"
            seen.add(number)
        assert not rows["loss_mask"][count:].any()
    assert seen == set(range(5))


def test_held_out_records_are_the_same_for_both_answers(tmp_path):
    made = config(write(tmp_path, pairs(40)), "preference", eval_fraction=0.3)
    train, held = (
        build_answers(made, byte_level(), 0, tmp_path, "preference", split)
        for split in ("train", "eval")
    )
    assert train.rows_per_epoch + held.rows_per_epoch == 40
    assert 5 < held.rows_per_epoch < 20


def test_long_answers_are_cut_and_long_prompts_left_out(tmp_path):
    records = [
        {"prompt": "p" * 12, "chosen": "a", "rejected": "b"},
        {"prompt": "p" * 13, "chosen": "a", "rejected": "b"},
        {"prompt": "p", "chosen": "a" * 30, "rejected": "b"},
    ]
    made = config(write(tmp_path, records), "preference", shuffle=False, batch_size=2)
    data = build_answers(made, byte_level(), 0, tmp_path, "preference")
    rows = data.batch(0)
    assert data.report["too_long"] == {"chosen": 1, "rejected": 1}
    assert [learned_text(rows, "chosen_", row) for row in (0, 1)] == ["a", "a" * 12]
    assert [learned_text(rows, "rejected_", row) for row in (0, 1)] == ["b", "b$"]


USER, GOOD, BAD = (
    {"role": role, "content": text}
    for role, text in (("user", "q"), ("assistant", "good"), ("assistant", "bad"))
)
EARLIER = [USER, {"role": "assistant", "content": "first"}, USER]


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": EARLIER, "chosen": [GOOD], "rejected": [BAD]},
        {"messages": EARLIER, "chosen": "good", "rejected": "bad"},
        {"messages": EARLIER, "chosen": GOOD, "rejected": BAD},
        {"chosen": [*EARLIER, GOOD], "rejected": [*EARLIER, BAD]},
        {"prompt": "q", "chosen": [*EARLIER, GOOD], "rejected": [*EARLIER, BAD]},
    ],
)
def test_forms_of_a_conversation(record, tmp_path):
    """Of all forms only the last answer is learned."""
    source = JsonLines(path=write(tmp_path, [record]), content="preference")
    made = DataConfig(sources=(source,), sequence_length=64, batch_size=1)
    data = build_answers(made, chat_tokenizer(), 0, tmp_path, "preference")
    rows = data.batch(0)
    assert learned_text(rows, "chosen_", 0) == "good$"
    assert learned_text(rows, "rejected_", 0) == "bad$"


@pytest.mark.parametrize(
    ("content", "record", "found"),
    [
        ("preference", {"prompt": "a", "chosen": "b"}, "line 2: found keys 'prompt', 'chosen'"),
        ("preference", {"chosen": "b", "rejected": "c"}, "no prompt"),
        ("preference", {"prompt": 3, "chosen": "b", "rejected": "c"}, "'prompt': int"),
        ("preference", {"prompt": "a", "chosen": [GOOD], "rejected": "c"}, "a prompt that is a"),
        (
            "preference",
            {"prompt": [USER], "chosen": [USER, GOOD], "rejected": [BAD]},
            "starts with 'user'",
        ),
        ("labelled", {"prompt": "a", "completion": "b", "label": "yes"}, "'label': 'yes'"),
        ("labelled", {"prompt": "a", "completion": "b"}, "a key 'label'"),
    ],
)
def test_a_wrong_record_is_named(content, record, found, tmp_path):
    good = {**pairs(1)[0], "completion": "c", "label": True}
    made = config(write(tmp_path, [good, record, good | {"label": False}]), content)
    with pytest.raises(DataError, match=r"data.jsonl line 2") as error:
        build_answers(made, byte_level(), 0, tmp_path, content)
    assert found.removeprefix("line 2: found ") in str(error.value)


def test_one_answer_of_a_record_is_a_document_too(tmp_path):
    source = JsonLines(path=write(tmp_path, pairs(2)), content="chosen")
    assert [document.text for document in read([source])] == ["p0:yes0", "p1:yes1"]


def test_what_does_not_go_together_is_refused(tmp_path):
    path = write(tmp_path, pairs())
    with pytest.raises(DataError, match="content preference, several answers a record"):
        build(config(path, "preference"), byte_level(), 0, tmp_path)
    with pytest.raises(ConfigError, match=r"sources.0.content: found 'chosen'"):
        build_answers(config(path, "chosen"), byte_level(), 0, tmp_path, "preference")
    source = JsonLines(path=path, content="preference", name="a")
    mixed = DataConfig(sources=(source,), sequence_length=8, batch_size=1, mixture=Mixture())
    with pytest.raises(ConfigError, match=r"data.mixture"):
        build_answers(mixed, byte_level(), 0, tmp_path, "preference")


def test_a_table_holds_pairs(tmp_path):
    import pyarrow as pa

    directory = tmp_path / "saved"
    directory.mkdir()
    records = [{"chosen": [USER, GOOD], "rejected": [USER, BAD]} for _ in range(3)]
    table = pa.Table.from_pylist(records)
    path = str(directory / "data-00000.arrow")
    with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    state = {"_data_files": [{"filename": "data-00000.arrow"}]}
    (directory / "state.json").write_text(json.dumps(state))
    source = HuggingFaceDataset(path=str(directory), content="preference")
    assert [view.content for view in views(source)] == ["chosen", "rejected"]
    made = DataConfig(sources=(source,), sequence_length=32, batch_size=1)
    data = build_answers(made, chat_tokenizer(), 0, tmp_path, "preference")
    assert data.rows_per_epoch == 3
    assert learned_text(data.batch(0), "chosen_", 0) == "good$"

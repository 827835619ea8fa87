import array
import json
import random

import msgspec
import pytest

from ziggurat.serve import json_values
from ziggurat.serve.errors import ContextTooLong, RequestError
from ziggurat.serve.json_values import (
    MAX_VALUES,
    TooManyValues,
    ValueBudget,
    count_values,
    read_ids,
)

SCALARS = [1, -2.5, None, True, "", "a,[{", "\\", '\\\\"', '"\\', "é]}", "\u2028"]


def values(rng, depth=4):
    """A JSON value without empty lists and objects, whose count is exact."""
    kind = rng.randrange(7) if depth else 0
    if kind < 3:
        return rng.choice(SCALARS)
    if kind < 5:
        return [values(rng, depth - 1) for _ in range(rng.randrange(1, 5))]
    names = [rng.choice('ab,"\\[') * rng.randrange(1, 4) + str(i) for i in range(3)]
    return {name: values(rng, depth - 1) for name in names[: rng.randrange(1, 4)]}


def count(value):
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + sum(map(count, inner))


@pytest.mark.parametrize("block", [1, 2, 3, 7, 2**18])
def test_the_count_is_that_of_the_decoded_text_wherever_blocks_end(monkeypatch, block):
    monkeypatch.setattr(json_values, "_BLOCK", block)
    rng = random.Random(block)
    for _ in range(40 if block < 9 else 300):
        value = {str(i): values(rng) for i in range(rng.randrange(1, 5))}
        text = json.dumps(value, ensure_ascii=rng.random() < 0.5).encode()
        found = count_values(text)
        assert found.total == count(value), text
        ((name, largest),) = json.loads(b"{" + text[found.largest] + b"}").items()
        assert value[name] == largest
        assert found.in_largest == count(largest) == max(map(count, value.values()))


def test_what_is_left_of_a_text_that_was_cut_is_counted_too():
    rng = random.Random(0)
    for _ in range(200):
        text = json.dumps({"a": values(rng), "b": values(rng)}).encode()
        cut = text[: rng.randrange(1, len(text))]
        found = count_values(cut)
        assert 1 <= found.total <= count_values(text).total
        assert found.largest.stop <= len(cut)


def test_empty_containers_count_no_less_than_they_are():
    assert count_values(b'{"a": [[], {}, []]}').total >= 5


def test_ids_read_in_pieces_are_those_read_at_once(monkeypatch):
    monkeypatch.setattr(json_values, "_PIECE", 5)
    rng = random.Random(1)
    for _ in range(300):
        space = rng.choice(["", " ", "\n\t"])
        lists = [
            [rng.choice([0, 7, -3, 50_000, 2**31 - 1, -(2**31)]) for _ in range(rng.randrange(9))]
            for _ in range(rng.randrange(1, 5))
        ]
        value = lists if rng.random() < 0.7 else lists[0]
        text = json.dumps(value, separators=("," + space, ":")).encode()
        found = read_ids(space.encode() + text + space.encode(), "prompt", 5, 9)
        flat = isinstance(found, array.array)
        assert (list(found) if flat else [list(each) for each in found]) == value


BROKEN = [b"[1,]", b"[,1]", b"[1,,2]", b"[1 2]", b"[1", b"1]", b"[[1],[2]", b"[[1]2]", b"[1]]",
          b"[-]", b"[01]", b"[[1],,[2]]", b"[[[1]]]", b"[[1],[2],]", b"[2147483648]", b"",
          b"[1.5]", b'["a"]', b"[true]", b"{}", b"[[1][2]]", b"[1]"[::-1]]  # fmt: skip


@pytest.mark.parametrize("text", BROKEN)
@pytest.mark.parametrize("piece", [1, 2, 2**14])
def test_a_list_that_is_no_list_of_ids_is_refused(monkeypatch, text, piece):
    monkeypatch.setattr(json_values, "_PIECE", piece)
    with pytest.raises(RequestError) as error:
        read_ids(text, "prompt", 5, 9)
    assert error.value.param == "prompt"


def test_more_ids_than_fit_are_refused_before_any_is_read(monkeypatch):
    monkeypatch.setattr(json_values, "_decoded", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ContextTooLong):
        read_ids(b"[" + b"1," * 9 + b"1]", "prompt", 5, 9)
    with pytest.raises(RequestError, match="6 lists"):
        read_ids(b"[" + b"[1]," * 5 + b"[1]]", "prompt", 5, 9)


def test_the_arguments_of_all_calls_share_one_budget():
    budget = ValueBudget()
    text = json.dumps({"x": list(range(1000))})
    taken = MAX_VALUES // count(json.loads(text))
    for _ in range(taken):
        budget.take(text, "arguments")
    with pytest.raises(TooManyValues, match="arguments"):
        budget.take(text, "arguments")
    short = ValueBudget()
    short.take('{"a": "b, [c"}', "arguments")
    assert MAX_VALUES - short.left >= 2


def test_the_most_values_that_are_let_through_decode():
    text = b"[" + b"[]," * ((MAX_VALUES - 2) // 2) + b"0]"
    assert count_values(text).total <= MAX_VALUES
    assert len(msgspec.json.decode(text)) > MAX_VALUES // 3

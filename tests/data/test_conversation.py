"""What of a conversation, or of a prompt and its completion, is learned, from text to tokens."""

import json

import numpy as np
import pytest

from ziggurat.core.errors import DataError
from ziggurat.data.conversation import rendered
from ziggurat.data.encode import DocumentEncoder, mark
from ziggurat.data.huggingface import HuggingFaceTokenizer
from ziggurat.data.sources import Document, JsonLines, TextFiles
from ziggurat.data.store import open_store, tokenise
from ziggurat.data.tokenizers import byte_level

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}"
    "{% else %}[{{ m.content }}]{% endif %}{% endfor %}"
)
FORGETFUL = (
    "{% for m in messages %}<{{ m.role }}>"
    "{% if not loop.last or m.role == 'user' %}{{ m.content[-2:] }}{% else %}{{ m.content }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Grüß dich"},
    {"role": "assistant", "content": "Héllo 😀 there"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "Ciao"},
]


def tokenizer_with(template, **named):
    named = {"eos_token": "<|im_end|>"} | named
    base = byte_level(named, ["<|im_start|>"])
    return HuggingFaceTokenizer(base.backend, named, chat_templates={"default": template})


def talk(messages=TALK):
    return Document("", "f", 1, messages=tuple(messages))


def learned_texts(document):
    return [document.text[start:end] for start, end in document.learned]


def learned_ids(tokenizer, document):
    ((ids, flags),) = DocumentEncoder(tokenizer).encode([document])
    return tokenizer.decode(ids[flags == 1].tolist(), skip_special_tokens=False), ids, flags


def test_blocks_of_the_template_are_learned():
    tokenizer = tokenizer_with(MARKED, eos_token="</s>", bos_token="<s>")
    made = rendered(talk(), tokenizer)
    assert learned_texts(made) == ["Héllo 😀 there</s>", "Ciao</s>"]
    text, ids, flags = learned_ids(tokenizer, made)
    assert text == "Héllo 😀 there</s>Ciao</s>"
    # The template spells bos and eos, so neither is doubled.
    assert ids.tolist().count(tokenizer.bos_id) == 1
    assert ids.tolist().count(tokenizer.eos_ids[0]) == 2
    assert (ids[0], ids[-1], flags[-1]) == (tokenizer.bos_id, tokenizer.eos_ids[0], 1)


def test_without_blocks_what_the_assistant_adds_is_learned():
    tokenizer = tokenizer_with(CHATML)
    made = rendered(talk(), tokenizer)
    assert made.text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
    assert learned_texts(made) == ["Héllo 😀 there<|im_end|>", "Ciao<|im_end|>"]
    text, ids, flags = learned_ids(tokenizer, made)
    assert text == "Héllo 😀 there<|im_end|>Ciao<|im_end|>"
    assert (ids[-1], flags[-1]) == (tokenizer.eos_ids[0], 0)


def test_a_template_that_changes_earlier_turns_is_refused():
    tokenizer = tokenizer_with(FORGETFUL)
    assert learned_texts(rendered(talk(TALK[1:3]), tokenizer)) == ["Héllo 😀 there"]
    with pytest.raises(DataError, match="message 2: found a text that later messages change"):
        rendered(talk(), tokenizer)


def test_no_template():
    with pytest.raises(DataError, match="found no chat template"):
        rendered(talk(), byte_level())


@pytest.mark.parametrize(
    ("learned", "expected"),
    [
        ([], [0, 0, 0, 0]),
        ([(0, 9)], [1, 1, 1, 1]),
        ([(2, 3)], [0, 1, 0, 0]),
        ([(4, 5), (6, 7)], [0, 0, 1, 1]),
        ([(3, 3)], [0, 0, 0, 0]),
    ],
)
def test_marks_by_offsets(learned, expected):
    assert mark(learned, [(0, 2), (2, 3), (3, 6), (6, 7)]) == expected


def test_marks_of_a_tokenizer_whose_tokens_cross_the_border(families):
    tokenizer = families["byte_fallback"]
    document = Document("Hello world", "f", 1, learned=((6, 11),))
    ((ids, flags),) = DocumentEncoder(tokenizer).encode([document])
    pieces = [tokenizer.backend.id_to_token(int(number)) for number in ids]
    assert pieces[0] == "<s>"
    assert (
        "".join(p for p, flag in zip(pieces, flags) if flag) == "world</s>"
        or "".join(p for p, flag in zip(pieces, flags, strict=True) if flag) == "▁world</s>"
    )


@pytest.mark.parity
def test_masks_equal_those_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    template = MARKED.replace("{{ bos_token }}", "")
    tokenizer = tokenizer_with(template, eos_token="</s>")
    tokenizer.save(tmp_path)
    oracle = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for messages in (TALK, TALK[1:3], TALK[2:]):
        expected = oracle.apply_chat_template(
            messages, return_assistant_tokens_mask=True, return_dict=True, tokenize=True
        )
        made = rendered(talk(messages), tokenizer)
        ((ids, flags),) = DocumentEncoder(tokenizer).encode([made])
        assert ids.tolist() == expected["input_ids"]
        assert flags.tolist() == expected["assistant_masks"]


@pytest.fixture
def corpus(tmp_path):
    lines = [
        {"messages": TALK},
        {"messages": TALK[:2]},
        {"messages": TALK[:3]},
    ]
    (tmp_path / "talk.jsonl").write_text("\n".join(map(json.dumps, lines)))
    lines = [{"prompt": "2+2=", "completion": "4"}, {"prompt": "x", "completion": ""}]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "a.txt").write_text("plain")
    return (
        JsonLines(path=str(tmp_path), glob="talk.jsonl", content="messages"),
        JsonLines(path=str(tmp_path), glob="pairs.jsonl", content="prompt_completion"),
        TextFiles(path=str(tmp_path), glob="*.txt"),
    )


def learned_of(store, number, tokenizer):
    part = slice(store.offsets[number], store.offsets[number + 1])
    ids = store.tokens[part][store.learn[part] == 1]
    return tokenizer.decode(ids.tolist(), skip_special_tokens=False)


def test_the_store_holds_what_is_learned(corpus, tmp_path):
    tokenizer = tokenizer_with(CHATML)
    store = tokenise(corpus, tokenizer, tmp_path / "cache")
    assert len(store) == 4
    assert store.learn.dtype == np.uint8
    assert [learned_of(store, number, tokenizer) for number in range(4)] == [
        "Héllo 😀 there<|im_end|>Ciao<|im_end|>",
        "Héllo 😀 there<|im_end|>",
        "4<|im_end|>",
        "plain<|im_end|>",
    ]
    assert (store.meta["report"]["empty"], store.meta["report"]["documents"]) == (2, 4)
    store.verify()
    assert np.array_equal(open_store(store.path).learn, store.learn)
    again = tokenise(corpus, tokenizer, tmp_path / "other", workers=2)
    assert again.content == store.content
    file = store.path / "learn.bin"
    content = bytearray(file.read_bytes())
    content[3] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match="found content"):
        open_store(store.path).verify()
    file.write_bytes(content[:-1])
    with pytest.raises(DataError, match="expected a whole store"):
        open_store(store.path)


def test_text_alone_needs_no_marks(corpus, tmp_path):
    store = tokenise(corpus[2:], byte_level(), tmp_path / "cache")
    assert store.learn is None
    assert not (store.path / "learn.bin").exists()


def test_another_template_makes_another_store(corpus, tmp_path):
    paths = {
        tokenise(corpus[:1], tokenizer_with(template), tmp_path / "cache").path
        for template in (CHATML, MARKED)
    }
    assert len(paths) == 2
    with pytest.raises(DataError, match="found no chat template"):
        tokenise(corpus[:1], byte_level(), tmp_path / "cache")


def test_a_conversation_the_template_refuses(tmp_path):
    strict = "{{ raise_exception('no system') if messages[0].role == 'system' }}" + CHATML
    lines = [{"messages": TALK}, {"messages": TALK[1:]}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    settings = {"path": str(tmp_path / "a.jsonl"), "content": "messages"}
    with pytest.raises(DataError, match=r"a\.jsonl record 1: found chat template: .*no system"):
        tokenise([JsonLines(**settings)], tokenizer_with(strict), tmp_path / "cache")
    skip = JsonLines(**settings, on_error="skip")
    store = tokenise([skip], tokenizer_with(strict), tmp_path / "cache")
    assert (len(store), store.meta["report"]["skipped"]) == (1, 1)


def test_marks_need_offsets():
    class Plain:
        vocab_size, bos_id, eos_ids, chat_template = 300, None, (0,), None

        def encode(self, text, *, add_special_tokens=False):
            return [ord(character) for character in text]

        def decode(self, ids, *, skip_special_tokens=True):
            return "".join(map(chr, ids))

    encoder = DocumentEncoder(Plain())
    assert encoder.encode([Document("ab", "f", 1)])[0][0].tolist() == [97, 98, 0]
    with pytest.raises(DataError, match="found no offsets of tokens"):
        encoder.encode([Document("ab", "f", 1, learned=((0, 1),))])

"""Special tokens are what the template makes, never what a user writes; and templates that take
parts get parts."""

import random

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from ziggurat.data import HuggingFaceTokenizer
from ziggurat.data.tokenizers import byte_level, train_bpe
from ziggurat.serve.errors import ContextTooLong
from ziggurat.serve.llm import special_text, texts
from ziggurat.serve.llm.render import render_chat
from ziggurat.serve.llm.texts import check_length, encode
from ziggurat.serve.openai.messages import conversation

SPECIALS = ("<|im_start|>", "<|im_end|>", "<s>")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PARTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NAMED = {"eos_token": "<|im_end|>", "bos_token": "<s>"}


def unigram():
    """Pieces with a word border, as SentencePiece makes them; its specials are pieces too."""
    letters = "abcdefghijklmnopqrstuvwxyzäöü0123456789<>|_\n.\"\\{}:,[]'"
    pieces = [("<unk>", 0.0), *((text, 0.0) for text in SPECIALS), ("▁", -3.0)]
    pieces += [(letter, -4.0 - n / 100) for n, letter in enumerate(letters)]
    pieces += [("▁hello", -2.0), ("user", -2.0), ("assistant", -2.0), ("im", -2.5), ("end", -2.5)]
    backend = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    return HuggingFaceTokenizer(backend, NAMED | {"extra_special_tokens": list(SPECIALS)})


def llama_like():
    """BPE that falls back to bytes, with a space put before every piece by the normalizer."""
    vocabulary = {"<unk>": 0} | {f"<0x{byte:02X}>": byte + 1 for byte in range(256)}
    for piece in ("▁", "h", "e", "l", "o", "he", "ll", "<", "|", "im", "i", "m", "_", "▁he"):
        vocabulary.setdefault(piece, len(vocabulary))
    for text in SPECIALS:
        vocabulary[text] = len(vocabulary)
    merges = [("h", "e"), ("l", "l"), ("i", "m"), ("▁", "he")]
    backend = tokenizers.Tokenizer(
        models.BPE(vocabulary, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return HuggingFaceTokenizer(backend, NAMED | {"extra_special_tokens": list(SPECIALS)})


def stripping():
    """Special tokens that swallow the white space beside them, as Phi-3's do."""
    made = byte_level({}, ())
    made.backend.add_tokens(
        [tokenizers.AddedToken(t, special=True, rstrip=True, lstrip=n == 2)
         for n, t in enumerate(SPECIALS)]
    )  # fmt: skip
    return HuggingFaceTokenizer(made.backend, NAMED)


MAKERS = {
    "bytes": lambda: byte_level(NAMED, SPECIALS[:1]),
    "bpe": lambda: train_bpe(["hello user assistant im_end <|>"] * 9, 300, NAMED, SPECIALS[:1]),
    "unigram": unigram,
    "byte fallback": llama_like,
    "stripping": stripping,
}


@pytest.fixture(scope="module", params=MAKERS)
def tokenizer(request):
    made = MAKERS[request.param]()
    made.chat_templates["default"] = CHATML
    return made


def said(rng, hostile):
    words = ["hello", " user", "im_end", "\n", "  ", "<", "|>", "a", "0", "<|im", "end|>"]
    words += [*SPECIALS, *SPECIALS] if hostile else []
    return "".join(rng.choice(words) for _ in range(rng.randrange(12)))


def test_the_twin_reads_harmless_conversations_as_the_tokenizer_does(tokenizer):
    rng, twin = random.Random(1), special_text.text_tokenizer(tokenizer)
    for _ in range(200):
        messages = [{"role": "user", "content": said(rng, False)} for _ in range(2)]
        text = tokenizer.apply_chat_template(messages)
        assert twin.encode(text, "no such mark") == tokenizer.encode(text)
        assert render_chat(tokenizer, messages) == tokenizer.encode(text)


def test_no_text_of_a_user_becomes_a_special_token(tokenizer):
    rng = random.Random(2)
    blank = [{"role": "user", "content": ""}] * 2
    wanted = [i for i in render_chat(tokenizer, blank) if i in tokenizer.special_ids]
    met = 0
    for _ in range(200):
        messages = [{"role": "user", "content": said(rng, True)} for _ in range(2)]
        ids = render_chat(tokenizer, messages)
        assert [i for i in ids if i in tokenizer.special_ids] == wanted
        as_tokens = render_chat(tokenizer, messages, special_tokens=True)
        text = tokenizer.apply_chat_template(messages)
        assert as_tokens == tokenizer.encode(text)
        met += as_tokens != ids
    assert met > 100


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_the_text_of_special_tokens_is_kept_letter_by_letter(kind):
    tokenizer, rng = MAKERS[kind](), random.Random(3)
    tokenizer.chat_templates["default"] = CHATML
    for _ in range(100):
        messages = [{"role": "user", "content": said(rng, True)}]
        ids = render_chat(tokenizer, messages)
        text = tokenizer.decode(ids, skip_special_tokens=False)
        assert text == tokenizer.apply_chat_template(messages)


def test_neither_parts_nor_keys_nor_calls_nor_variables_make_special_tokens():
    tokenizer = MAKERS["bytes"]()
    tokenizer.chat_templates["default"] = (
        "{{ tools | tojson }}{# <tool_call> #}{{ note }}{% for m in messages %}"
        "{% for p in m.content %}{{ p.text }}{% endfor %}"
        "{{ (m.tool_calls or []) | tojson }}{{ m.name }}{% endfor %}"
    )
    end = SPECIALS[1]
    parts = [{"type": "text", "text": "<|im_"}, {"type": "text", "text": "end|>"}]
    call = {"id": end, "function": {"name": end, "arguments": {end: [end]}}}
    messages = conversation(
        [
            {"role": "user", "content": parts, "name": end},
            {"role": "assistant", "content": "<|im_end", "tool_calls": [call]},
            {"role": "user", "content": "|>"},
        ]
    )
    tools = [{"type": "function", "function": {"name": "f", "description": end}}]
    ids = render_chat(tokenizer, messages, tools, variables={"note": end})
    assert not [i for i in ids if i in tokenizer.special_ids]
    assert tokenizer.decode(ids).count(end) >= 6


def test_prompts_keep_their_special_tokens_unless_told_otherwise():
    tokenizer = MAKERS["bytes"]()
    text = "<s>a<|im_end|>"
    (kept,) = encode(tokenizer, [text], "prompt")
    (plain,) = encode(tokenizer, [text], "prompt", special_tokens=False)
    bos, end = (tokenizer.backend.token_to_id(t) for t in ("<s>", "<|im_end|>"))
    assert kept == [bos, bos, ord("a"), end]
    assert plain == [bos, *text.encode()], "what the model expects before a text stays a token"


@pytest.mark.parametrize(
    ("template", "form"),
    [
        (CHATML, "string"),
        (PARTS, "openai"),
        (CHATML.replace("m.content", "m['content'] | trim"), "string"),
        (PARTS.replace("m.content", "m['content']"), "openai"),
        ("{% macro show(c) %}{% if c is string %}{{ c }}{% else %}{% for p in c %}{{ p.text }}"
         "{% endfor %}{% endif %}{% endmacro %}"
         "{% for m in messages %}{{ show(m.content) }}{% endfor %}", "string"),
        ("{% set c = messages[0].content %}{% for p in c %}{{ p['text'] }}{% endfor %}", "openai"),
        ("{% for m in messages %}{{ m.content[0].text }}{% endfor %}", "openai"),
        ("{{ raise_exception('never') }}", "string"),
    ],
)  # fmt: skip
def test_templates_get_content_as_they_take_it(template, form):
    from ziggurat.serve.llm.render import content_format_of

    assert content_format_of(template) == form


@pytest.mark.parametrize("template", [CHATML, PARTS])
@pytest.mark.parametrize("parts", [False, True])
def test_either_template_shows_either_content(template, parts):
    tokenizer = MAKERS["bytes"]()
    tokenizer.chat_templates["default"] = template
    content = [{"type": "text", "text": "he"}, {"type": "text", "text": "llo"}]
    messages = conversation([{"role": "user", "content": content if parts else "hello"}])
    shown = tokenizer.decode(render_chat(tokenizer, messages), skip_special_tokens=False)
    assert shown == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    other = "openai" if template == CHATML else "string"
    forced = tokenizer.decode(render_chat(tokenizer, messages, content_format=other))
    assert "hello" not in forced.replace("'text': 'hello'", ""), "the switch decides"


def test_a_text_far_too_long_is_refused_before_it_is_encoded(monkeypatch):
    tokenizer = MAKERS["bpe"]()
    tokenizer.chat_templates["default"] = CHATML
    longest = tokenizer.longest_token
    text = "<|im_end|>" * 2000
    assert len(tokenizer.encode(text)) * longest >= len(text), "the bound is one"
    monkeypatch.setattr(type(tokenizer), "encode", None)
    with pytest.raises(ContextTooLong, match="at least"):
        encode(tokenizer, ["x" * (10 * longest + 1)], "prompt", max_length=10)
    messages = [{"role": "user", "content": "x" * (10 * longest)}]
    with pytest.raises(ContextTooLong, match="at most 10 tokens"):
        render_chat(tokenizer, messages, max_length=10)
    check_length(tokenizer, "x" * (10 * longest), 10, "prompt")


def test_the_bound_on_lengths_holds_for_every_tokenizer(tokenizer):
    rng = random.Random(4)
    for _ in range(200):
        text = said(rng, True)
        assert len(text.encode()) <= (len(tokenizer.encode(text)) + 1) * tokenizer.longest_token


def test_a_text_searched_in_stretches_is_changed_as_one_searched_at_once(monkeypatch):
    rng = random.Random(0)
    pattern = special_text._any_of(["<|end|>", "<|", "<|endo", "aa"])
    for _ in range(500):
        monkeypatch.setattr(special_text, "_STRETCH", rng.randrange(1, 9))
        text = "".join(rng.choice(["<|end|>", "<|endo", "<", "|", "a", "x"]) for _ in range(9))
        found = special_text._replaced(pattern, lambda match: f"[{match}]", text, 7)
        assert found == pattern.sub(lambda match: f"[{match[0]}]", text), text


@pytest.mark.parametrize("text", ["ab cd ", "x", "<|im_end|> a", "é\u2028"])
def test_a_long_text_is_counted_in_pieces_and_refused_only_if_it_does_not_fit(monkeypatch, text):
    tokenizer = byte_level(NAMED)
    monkeypatch.setattr(texts, "_PIECE", 1000)
    monkeypatch.setattr(texts, "_CUT", 10)
    whole = text * 2000
    fits = len(tokenizer.encode(whole))
    seen = []
    plain = texts._count
    monkeypatch.setattr(texts, "_count", lambda t, piece: seen.append(piece) or plain(t, piece))
    limit = min(fits, len(whole)) - 1
    if limit > fits * 0.9:  # not refused here for what a cut may have added
        texts.check_length(tokenizer, whole, limit, "prompt")
        assert "".join(seen) == whole
    seen.clear()
    longest = tokenizer.longest_token
    limit = max(fits // 4, len(whole.encode()) // longest + 1)
    if limit >= fits * 9 // 10:
        pytest.skip("refused by its bytes first")
    with pytest.raises(ContextTooLong, match="at least"):
        texts.check_length(tokenizer, whole, limit, "prompt")
    assert len("".join(seen)) < len(whole) or limit > fits // 2, "the rest is not looked at"

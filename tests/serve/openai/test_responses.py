"""What answers tell of prompts: echoes with log-probabilities, and vLLM's ``prompt_logprobs``."""

import jax
import numpy as np
import pytest

PROMPT = "def \N{LATIN SMALL LETTER E WITH ACUTE}(x):"
CLOSE = 2e-5


@pytest.fixture(scope="module")
def scores(tokenizer, whole):
    """Log-probabilities ``[t - 1, v]`` of what may come after each token of a text, and its ids."""

    def of(text):
        ids = tokenizer.encode(text, add_special_tokens=True)
        return np.asarray(jax.nn.log_softmax(whole(ids), axis=-1)), ids

    return of


def ask(client, **fields):
    given = {"model": "tiny", "prompt": PROMPT, "temperature": 0, "max_tokens": 1}
    return client.completions.create(**given | fields)


def check_echo(choice, text, scores, top=2):
    """The choice begins with ``text`` and the log-probabilities of its tokens."""
    found, ids = scores(text)
    assert choice.text.startswith(text)
    shown = choice.logprobs
    assert shown.token_logprobs[0] is None
    assert shown.top_logprobs[0] is None
    for place, token in enumerate(ids[1:], 1):
        assert shown.token_logprobs[place] == pytest.approx(found[place - 1, token], abs=CLOSE)
        best = max(shown.top_logprobs[place].values())
        assert best == pytest.approx(found[place - 1].max(), abs=CLOSE)
        assert len(shown.top_logprobs[place]) <= top
    lengths = {len(part) for part in (shown.tokens, shown.text_offset, shown.token_logprobs)}
    assert lengths == {len(shown.top_logprobs)}
    return len(ids)


def test_an_echo_has_the_log_probabilities_of_the_prompt(client, scores):
    answer = ask(client, echo=True, logprobs=2, max_tokens=3)
    (choice,) = answer.choices
    count = check_echo(choice, PROMPT, scores)
    assert len(choice.logprobs.tokens) == count + answer.usage.completion_tokens
    assert choice.logprobs.text_offset[:2] == [0, 1]
    # Two bytes of one character: the second begins where the first did.
    assert choice.logprobs.text_offset[4:7] == [4, 4, 5]


def test_several_prompts_and_choices_each_have_their_own(client, scores):
    prompts = ["one", "number two", "3"]
    answer = ask(client, prompt=prompts, n=2, echo=True, logprobs=2, temperature=1.0, seed=1)
    assert len(answer.choices) == 6
    for number, choice in enumerate(answer.choices):
        check_echo(choice, prompts[number // 2], scores)


def test_no_token_asks_for_the_prompt_alone(client, scores):
    answer = ask(client, echo=True, logprobs=0, max_tokens=0)
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason) == (PROMPT, "length")
    assert answer.usage.completion_tokens == 0
    found, ids = scores(PROMPT)
    assert choice.logprobs.token_logprobs[1:] == pytest.approx(
        [found[i, token] for i, token in enumerate(ids[1:])], abs=CLOSE
    )


@pytest.mark.parametrize("tokens", [0, 3])
def test_a_stream_tells_the_same(client, tokens):
    fields = {"echo": True, "logprobs": 1, "max_tokens": tokens}
    (whole,) = ask(client, **fields).choices
    parts = [each.choices[0] for each in ask(client, **fields, stream=True) if each.choices]
    assert "".join(part.text for part in parts) == whole.text
    logprobs = [part.logprobs for part in parts if part.logprobs]
    for name in ("tokens", "text_offset"):
        told = [entry for part in logprobs for entry in getattr(part, name)]
        assert told == getattr(whole.logprobs, name)
    assert parts[-1].finish_reason == whole.finish_reason


@pytest.mark.parametrize("top", [0, 3])
def test_prompt_logprobs_in_vllms_form(client, scores, top):
    (choice,) = ask(client, extra_body={"prompt_logprobs": top}).choices
    found, ids = scores(PROMPT)
    entries = choice.prompt_logprobs
    assert entries[0] is None
    for place, token in enumerate(ids[1:]):
        own = entries[place + 1][str(token)]
        assert own["logprob"] == pytest.approx(found[place, token], abs=CLOSE)
        assert own["rank"] == (found[place] > found[place, token]).sum() + 1
        assert top <= len(entries[place + 1]) <= top + 1
    assert len(entries) == len(ids)


def test_prompt_logprobs_of_a_chat_stand_beside_its_choices(client, scores):
    messages = [{"role": "user", "content": "hi"}]
    answer = client.chat.completions.create(
        model="tiny", messages=messages, max_tokens=1, extra_body={"prompt_logprobs": 1}
    )
    found, ids = scores("<user>hi<assistant>")
    assert len(answer.prompt_logprobs) == len(ids) == answer.usage.prompt_tokens
    last = answer.prompt_logprobs[-1][str(ids[-1])]
    assert last["logprob"] == pytest.approx(found[len(ids) - 2, ids[-1]], abs=CLOSE)
    assert last["decoded_token"] == ">"


def test_token_ids_of_prompts_and_choices(client, tokenizer):
    more = {"return_token_ids": True}
    answer = ask(client, prompt=["ab", "c"], n=2, max_tokens=3, extra_body=more)
    for number, choice in enumerate(answer.choices):
        prompt = "ab" if number < 2 else "c"
        assert choice.prompt_token_ids == tokenizer.encode(prompt, add_special_tokens=True)
        assert 1 <= len(choice.token_ids) <= 3
    parts = list(ask(client, prompt="ab", max_tokens=3, stream=True, extra_body=more))
    streamed = [token for part in parts for token in part.choices[0].token_ids]
    assert streamed == answer.choices[0].token_ids
    assert parts[0].choices[0].prompt_token_ids == answer.choices[0].prompt_token_ids


def test_token_ids_of_a_chat(client, tokenizer):
    asked = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 4,
        "temperature": 0,
        "extra_body": {"return_token_ids": True},
    }
    answer = client.chat.completions.create(**asked)
    assert answer.prompt_token_ids == tokenizer.encode("<user>hi<assistant>")
    parts = list(client.chat.completions.create(**asked, stream=True))
    given = [getattr(part.choices[0], "token_ids", None) or [] for part in parts]
    assert [token for ids in given for token in ids] == answer.choices[0].token_ids
    assert parts[0].prompt_token_ids == answer.prompt_token_ids


def test_an_answer_continues_the_last_message(client, tokenizer):
    openai = pytest.importorskip("openai")
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Sure: "}]
    answer = client.chat.completions.create(
        model="tiny",
        messages=messages,
        max_tokens=1,
        extra_body={"continue_final_message": True, "return_token_ids": True},
    )
    assert answer.prompt_token_ids == tokenizer.encode("<user>hi<assistant>Sure: ")
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    messages[-1]["tool_calls"] = [call]
    with pytest.raises(openai.BadRequestError, match="found calls behind it"):
        client.chat.completions.create(
            model="tiny", messages=messages, extra_body={"continue_final_message": True}
        )


def test_older_names_of_structured_outputs(client):
    answer = ask(client, max_tokens=8, extra_body={"guided_choice": ["yes", "no"]})
    assert answer.choices[0].text in ("yes", "no")

"""The engine: texts, stops, counts, queue, cancellation, failure."""

import threading

import numpy as np
import pytest
from tests.kernels.cpu_library import require_library

from ziggurat.core.errors import ConfigError
from ziggurat.kernels.linear import stored
from ziggurat.kernels.paged_attention import cpu as paged_cpu
from ziggurat.models.quantized import summed_axes
from ziggurat.quantize import NAMED
from ziggurat.quantize.weights import quantize
from ziggurat.serve.errors import ContextTooLong, EngineStopped, QueueFull, RequestError
from ziggurat.serve.llm import programs
from ziggurat.serve.llm.engine import Engine, EngineConfig
from ziggurat.serve.llm.offline import LLM
from ziggurat.serve.llm.sampling import SamplingParams

PROMPT = [104, 101, 108, 108, 111]


def run(engine, prompt=PROMPT, **params):
    return list(engine.generate(prompt, SamplingParams(**params)))


def text_of(events, choice=0):
    return "".join(e.text for e in events if e.choice == choice)


def greedy_by_hand(whole, prompt, count):
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(whole(tokens)[-1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("size", [1, 5, 33, 70])
def test_greedy_tokens_and_text_are_the_models(engine, whole, tokenizer, size):
    prompt = np.random.default_rng(size).integers(0, 256, size).tolist()
    events = run(engine, prompt, temperature=0, max_tokens=20, ignore_eos=True)
    expected = greedy_by_hand(whole, prompt, 20)
    assert [e.token for e in events] == expected
    assert text_of(events) == tokenizer.decode(expected)
    assert [e.finish_reason for e in events] == [None] * 19 + ["length"]


def test_a_seed_fixes_the_tokens_and_its_absence_does_not(engine):
    def tokens(**params):
        return [e.token for e in run(engine, max_tokens=24, ignore_eos=True, **params)]

    assert tokens(seed=7) == tokens(seed=7)
    assert tokens(seed=7) != tokens(seed=8)
    assert tokens() != tokens()


def test_n_gives_n_different_choices_of_which_the_first_is_that_of_n_1(engine):
    several = run(engine, n=3, seed=3, max_tokens=16, ignore_eos=True)
    lists = [[e.token for e in several if e.choice == c] for c in range(3)]
    assert [len(tokens) for tokens in lists] == [16, 16, 16]
    assert len(set(map(tuple, lists))) == 3
    alone = run(engine, seed=3, max_tokens=16, ignore_eos=True)
    assert [e.token for e in alone] == lists[0]
    third = [e.finish_reason for e in several if e.choice == 2]
    assert third[-1] == "length"


def test_an_end_id_stops_without_text_and_counts(engine, tokenizer):
    free = run(engine, seed=1, max_tokens=12, ignore_eos=True)
    end = free[5].token
    stopped = run(engine, seed=1, max_tokens=12, ignore_eos=True, stop_token_ids=(end,))
    first = [e.token for e in free].index(end)
    assert [e.token for e in stopped] == [e.token for e in free][: first + 1]
    assert stopped[-1].finish_reason == "stop"
    assert text_of(stopped) == tokenizer.decode([e.token for e in free][:first])


def test_stop_texts_across_tokens_never_show(engine, tokenizer):
    """Bytes are tokens here, so every stop text of several bytes crosses token borders."""
    cut = 0
    for seed in range(30):
        free = run(engine, seed=seed, max_tokens=40)
        whole = text_of(free)
        for start, size in ((3, 2), (9, 4), (14, 1)):
            stop = whole[start : start + size]
            if not stop or "\ufffd" in stop:
                continue
            events = run(engine, seed=seed, max_tokens=40, stop=(stop, "never there"))
            assert text_of(events) == whole[: whole.index(stop)]
            assert events[-1].finish_reason == "stop"
            assert all(e.finish_reason is None for e in events[:-1])
            cut += 1
    assert cut > 10


def test_log_probabilities_are_the_models_and_belong_to_the_text(engine, whole):
    events = run(engine, seed=2, max_tokens=20, temperature=0.7, logprobs=4, ignore_eos=True)
    entries = [entry for e in events for entry in e.logprobs]
    tokens = [e.token for e in events]
    assert [entry.token for entry in entries] == tokens
    assert b"".join(e.raw for e in entries).decode("utf-8", "replace") == text_of(events)
    logits = whole([*PROMPT, *tokens])
    scores = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    for place, entry in enumerate(entries, start=len(PROMPT) - 1):
        assert entry.logprob == pytest.approx(scores[place, entry.token], abs=1e-4)
        best = np.argsort(-scores[place])[:4].tolist()
        assert [top.token for top in entry.top] == best


def test_tokens_of_a_stop_text_have_no_log_probabilities(engine):
    for seed in range(50):
        whole = text_of(run(engine, seed=seed, max_tokens=40))
        stops = (whole[i : i + 2] for i in range(4, len(whole) - 2))
        stop = next((text for text in stops if text.isascii()), None)
        if stop is not None:
            events = run(engine, seed=seed, max_tokens=40, stop=(stop,), logprobs=0)
            raw = b"".join(entry.raw for e in events for entry in e.logprobs)
            assert raw.decode("utf-8", "replace") == text_of(events) == whole[: whole.index(stop)]
            return
    pytest.fail("no seed gave two ascii letters to stop at")


def test_without_a_limit_the_context_is_filled(engine):
    events = run(engine, seed=1, ignore_eos=True)
    assert len(events) == engine.max_length - len(PROMPT)
    assert events[-1].finish_reason == "length"


@pytest.mark.parametrize(
    ("prompt", "asked", "error", "said"),
    [
        ([], {}, RequestError, "prompt: found no tokens"),
        ([1, 257], {}, RequestError, "prompt: found 257; expected ids from 0 to 256"),
        ([-1], {}, RequestError, "prompt: found -1"),
        ([1], {"stop_token_ids": (300,)}, RequestError, "stop_token_ids: found 300"),
        ([1] * 96, {}, ContextTooLong, "found 96 prompt tokens; expected at most 96 tokens"),
        ([1] * 90, {"max_tokens": 7}, ContextTooLong, "90 prompt tokens and max_tokens 7"),
    ],
)
def test_requests_that_cannot_be_served_are_refused(engine, prompt, asked, error, said):
    with pytest.raises(error) as caught:
        engine.submit(prompt, SamplingParams(**asked))
    assert said in str(caught.value)


def test_a_full_queue_refuses_and_cancelling_frees_it(model, params, tokenizer):
    settings = EngineConfig(max_sequence_length=200, max_queue=2, max_running=1)
    with Engine(model, params, tokenizer, settings) as engine:
        hold, started = threading.Event(), threading.Event()

        def slow(event):
            started.set()
            hold.wait(60)

        endless = SamplingParams(ignore_eos=True)
        running = engine.submit(PROMPT, endless, slow)
        assert started.wait(60)
        waiting = [engine.submit(PROMPT, endless) for _ in range(2)]
        assert (engine.running, engine.waiting) == (1, 2)
        with pytest.raises(QueueFull, match="found 2 requests waiting"):
            engine.submit(PROMPT, endless)
        running.cancel()
        waiting[0].cancel()
        hold.set()
        assert list(waiting[0]) == []
        assert len(list(waiting[1])) == 200 - len(PROMPT)
        assert running.timeline.generated_tokens == 1, "it continued after it was cancelled"
        assert waiting[0].timeline.generated_tokens == 0


def test_stopping_an_iteration_cancels(engine):
    events = engine.generate(PROMPT, SamplingParams(ignore_eos=True))
    next(events)
    events.close()
    assert len(run(engine, max_tokens=3, ignore_eos=True)) == 3


def test_a_closed_engine_refuses_and_ends_what_runs(model, params, tokenizer):
    engine = Engine(model, params, tokenizer)
    events = engine.generate(PROMPT, SamplingParams(ignore_eos=True))
    next(events)
    engine.close()
    assert len(list(events)) < 250
    with pytest.raises(EngineStopped, match="closed"):
        engine.submit(PROMPT, SamplingParams())


def test_a_failing_device_ends_all_requests_with_the_reason(model, params, tokenizer, monkeypatch):
    with Engine(model, params, tokenizer) as engine:
        submitted = threading.Event()

        def fail(shape, sequences, counts):
            submitted.wait(60)
            raise RuntimeError("out of memory")

        monkeypatch.setattr(engine._runner, "start", fail)
        generations = [engine.submit(PROMPT, SamplingParams(ignore_eos=True)) for _ in range(3)]
        submitted.set()
        for generation in generations:
            with pytest.raises(EngineStopped, match="out of memory"):
                list(generation)
        with pytest.raises(EngineStopped, match="out of memory"):
            engine.submit(PROMPT, SamplingParams())


@pytest.mark.slow
def test_warm_up_compiles_everything_there_is(model, params, tokenizer, monkeypatch):
    settings = EngineConfig(max_sequence_length=64, max_prefill_chunk=16, max_running=2)
    with Engine(model, params, tokenizer, settings) as engine:
        done = engine.warm_up()
        assert done.programs == 3 + 2 * 2 + 1  # steps 1x1, 2x1 and 1x16; shapers, scores; history
        assert done.seconds > 0
        assert done.loaded == 0
        monkeypatch.setattr(programs.Programs, "_compile", None)  # nothing more is compiled
        run(engine, prompt=list(range(40)), max_tokens=4, logprobs=2)
        run(engine, max_tokens=4, n=3, presence_penalty=1.0)
        assert engine.warm_up().programs == done.programs


def test_a_context_longer_than_the_models_is_refused(model, params, tokenizer):
    with pytest.raises(ConfigError, match="found 257; expected at most 256"):
        Engine(model, params, tokenizer, EngineConfig(max_sequence_length=257))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"max_batched_tokens": 8}, "max_batched_tokens: found 8, expected at least max_running"),
        ({"block_size": 0}, "block_size: found 0, expected a number >= 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        EngineConfig(**wrong)


def test_a_cache_smaller_than_a_sequence_is_refused(model, params, tokenizer):
    settings = EngineConfig(max_sequence_length=96, cache_tokens=80)
    with pytest.raises(ConfigError, match="cache_tokens: found 80; expected at least"):
        Engine(model, params, tokenizer, settings)


def test_llm_generates_and_chats_and_batches(model, params, tokenizer):
    from ziggurat.models.loading.pretrained import Pretrained

    pretrained = Pretrained(model, params, tokenizer, "tiny", "a test")
    greedy = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, n=2)
    with LLM(pretrained, EngineConfig(max_running=2, max_queue=1, max_prefill_chunk=16)) as llm:
        texts, ids = llm.generate(["ab", "cd"], greedy), llm.generate([97, 98], greedy)
        assert [o.prompt_ids for o in texts] == [[97, 98], [99, 100]]
        assert texts[0].completions[0] == ids[0].completions[0] == texts[0].completions[1]
        assert llm.generate([[97, 98], [99, 100]] * 3, greedy) == texts * 3, "beyond the queue"
        assert llm.generate("ab", greedy)[0].text == tokenizer.decode(
            texts[0].completions[0].token_ids
        )
        once = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
        mixed = llm.generate(["ab", "cd"], [once, greedy])
        assert [len(o.completions) for o in mixed] == [1, 2]
        assert mixed[0].completions[0].token_ids == texts[0].completions[0].token_ids[:2]
        with pytest.raises(RequestError, match="params: found 1; expected one for all prompts"):
            llm.generate(["ab", "cd"], [once])
        talk = [{"role": "user", "content": "hi"}]
        answer = llm.chat(talk, greedy)
        assert tokenizer.decode(answer.prompt_ids) == "<user>hi<assistant>"
        assert llm.chat([talk, talk], greedy) == [answer, answer]
        with pytest.raises(RequestError, match="prompt: found no tokens"):
            llm.generate(["ab", ""], greedy)
        assert llm.generate("ab", greedy)[0] == texts[0], "the engine is free again"


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["int8", "int4"])
def test_kernels_of_the_cpu_give_the_tokens_of_the_definitions(
    model, params, tokenizer, monkeypatch, recipe
):
    """Greedy, several rows at once, quantised; float weights are compared with one forward pass
    above."""
    require_library()
    small = quantize(params, NAMED[recipe], summed_axes(model)).params
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 256, size).tolist() for size in (1, 5, 33)]
    asked = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)

    def tokens():
        settings = EngineConfig(max_sequence_length=64, max_prefill_chunk=32, max_running=2)
        with Engine(model, small, tokenizer, settings) as made:
            running = [made.submit(prompt, asked) for prompt in prompts]
            return [[event.token for event in one] for one in running]

    found = tokens()
    for module in (stored, paged_cpu):
        monkeypatch.setattr(module, "usable", lambda name, *arrays: False)
    assert found == tokens()

"""The engine over a hybrid with experts: prompts in chunks, rows side by side, preemption."""

import dataclasses

import jax
import numpy as np
import pytest
from tests.models.families.test_qwen_hybrid import CONFIG
from tests.serve.llm.test_layer_states import SETTINGS, prompts, together

from ziggurat.models import LanguageModel
from ziggurat.serve.llm.engine import Engine

CONTEXT = 96


@pytest.mark.slow
def test_sequences_that_lose_their_blocks_end_the_same(tokenizer):
    model = LanguageModel.build(
        dataclasses.replace(CONFIG, vocab_size=258, max_sequence_length=CONTEXT)
    )
    params = model.init(jax.random.key(1))
    logits, asked = jax.jit(model.logits), prompts(14, 15, 13, 12)

    def by_hand(prompt, count=32):
        made = list(prompt)
        for _ in range(count):
            row = np.zeros((1, CONTEXT), np.int32)
            row[0, : len(made)] = made
            made.append(int(np.asarray(logits(params, row))[0, len(made) - 1].argmax()))
        return made[len(prompt) :]

    with Engine(
        model, params, tokenizer, dataclasses.replace(SETTINGS, cache_tokens=112)
    ) as engine:
        found = together(engine, asked, 32)
        statistics = engine.statistics()
    assert found == [by_hand(prompt) for prompt in asked]
    assert statistics.preemptions > 0

"""Greedy tokens against transformers' ``generate``, on float32: equal, token for token."""

import pytest

from ziggurat.serve.llm import LLM, EngineConfig, SamplingParams

pytestmark = pytest.mark.parity

PROMPTS = [
    "Once upon a time",
    "def fibonacci(n):\n",
    "The capital of France is",
    "1, 2, 3, 5, 8, 13,",
    "Water boils at one hundred degrees because " * 4,
]


def theirs(model, ids, count):
    import torch

    with torch.no_grad():
        out = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False,
            max_new_tokens=count,
            pad_token_id=0,
        )
    return out[0, len(ids) :].tolist()


def test_a_random_llama_saved_by_transformers(tmp_path, tokenizer):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=257,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=256,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    with LLM(tmp_path, EngineConfig(max_prefill_chunk=32)) as llm:
        for prompt in PROMPTS:
            ids = tokenizer.encode(prompt)
            output = llm.generate(ids, SamplingParams(temperature=0, max_tokens=40))[0]
            assert output.completions[0].token_ids == theirs(model, ids, 40)

"""How text is cut before byte-level BPE, by the names of ``tokenizer.ggml.pre``.

Names and their meaning: https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp. The
patterns are those of the models' own tokenizers, which llama.cpp approximates in places.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ziggurat.formats import split_patterns as patterns
from ziggurat.formats import tokenizer_document as parts


@dataclasses.dataclass(frozen=True)
class PreTokenizer:
    """A rule of ``tokenizer.ggml.pre``."""

    document: Mapping[str, Any]
    """Pre-tokenizer of ``tokenizers``."""
    whole_words: bool = False
    """Whether a word of the vocabulary is taken before merging, which may not reach it."""
    starts: bool = False
    """Whether a text starts with the bos token where the file does not say."""
    composed: bool = False
    """Whether the model's own tokenizer brings text to NFC."""


def _rule(*expressions: str, **settings: bool) -> PreTokenizer:
    return PreTokenizer(parts.split(*expressions), **settings)


_DIGITS = {
    "type": "Sequence",
    "pretokenizers": [{"type": "Digits", "individual_digits": True}, parts.byte_level(True)],
}
_GPT_2 = PreTokenizer(parts.byte_level(True))
_LLAMA_3 = _rule(patterns.LLAMA_3, whole_words=True, starts=True)
_QWEN_2 = _rule(patterns.QWEN_2, composed=True)
_DEEPSEEK_3 = _rule(*patterns.DEEPSEEK_3)
_GPT_4O = _rule(patterns.GPT_4O)
_BLOOM = _rule(patterns.BLOOM)
_ROWS: tuple[tuple[PreTokenizer, str], ...] = (
    (
        _GPT_2,
        "gpt-2 phi-2 jina-es jina-de jina-v2-es jina-v2-de gigachat a.x-4.0 mellum",
    ),
    (_GPT_2, "modern-bert mpt olmo jais trillion granite-docling exaone4"),
    (_GPT_2, "jina-v1-en jina-v2-code roberta-bpe"),
    (_LLAMA_3, "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano"),
    (_rule(patterns.LLAMA_3), "dbrx smaug-bpe glm4 chatglm-bpe"),
    (_QWEN_2, "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez"),
    (_rule(patterns.QWEN_2), "stablelm2 hunyuan solar-open grok-2"),
    (_rule(patterns.QWEN_35, composed=True), "qwen35"),
    (
        PreTokenizer(_DIGITS),
        "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
    ),
    (_rule(*patterns.DEEPSEEK), "deepseek-llm"),
    (_rule(*patterns.DEEPSEEK_CODER), "deepseek-coder"),
    (_DEEPSEEK_3, "deepseek-v3 hunyuan-dense joyai-llm hy_v4"),
    (_rule(*patterns.YOUTU, whole_words=True), "youtu"),
    (_rule(*patterns.FALCON), "falcon"),
    (_rule(patterns.TEKKEN, whole_words=True, starts=True), "tekken"),
    (_GPT_4O, "gpt-4o llama4 kanana2 talkie minimax-m2"),
    (_BLOOM, "poro-chat bloom gpt3-finnish"),
    (_rule(patterns.BLOOM, patterns.DIGITS), "viking"),
    (_rule(patterns.BAILING), "bailingmoe bailingmoe2 llada-moe"),
    (_rule(patterns.SEED_CODER), "seed-coder"),
    (_rule(patterns.EXAONE_MOE), "exaone-moe"),
    (_rule(patterns.JAIS_2), "jais-2"),
    (_rule(*patterns.MINICPM_5, whole_words=True), "minicpm5"),
    (_rule(patterns.UFAKZEKA), "ufakzeka"),
    (_rule(*patterns.LAGUNA), "laguna"),
    (_rule(*patterns.DEFAULT), "default"),
)

PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    name: rule for rule, names in _ROWS for name in names.split()
}
"""Rules by name. Of llama.cpp's names are missing those whose rule is code there (afmoe, kimi-k2,
superbpe, chameleon, tiny_aya, spark2_5, granite-embed-multi) or does not go to bytes (gemma4,
sarvam-moe, whitespace)."""

"""Reasoning between ``<think>`` tags that the model or its template writes, as Qwen 3 does.

An answer that does not begin with ``<think>``, to a prompt that does not end with it, is an answer
without reasoning. Most models that reason write this form: Qwen 3 and 3.5, GLM-4.5, SmolLM3,
MiniMax-M2 and others (https://arxiv.org/abs/2505.09388).
"""

from ziggurat.serve.llm.reasoning_parsers import ReasoningParser


class Qwen3Parser(ReasoningParser):
    """Reasoning between ``<think>`` and ``</think>``, if the answer has any."""

    tags = "<think>", "</think>"


PARSER = Qwen3Parser()

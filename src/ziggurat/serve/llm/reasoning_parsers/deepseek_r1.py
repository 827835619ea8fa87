"""Reasoning of DeepSeek-R1: each answer has it, and ``<think>`` before it may be missing.

The first templates of R1 and its distillations cut ``</think>`` from earlier answers and do not
name ``<think>``, which the model writes or leaves out (https://arxiv.org/abs/2501.12948).
"""

from ziggurat.serve.llm.reasoning_parsers import ReasoningParser


class DeepSeekR1Parser(ReasoningParser):
    """Reasoning up to ``</think>``, also without ``<think>`` before it."""

    tags = "<think>", "</think>"
    assumed = True

    def written_by(self, template: str) -> bool:
        """Whether a template names the closing tag alone."""
        return self.tags[1] in template and self.tags[0] not in template


PARSER = DeepSeekR1Parser()

"""Reasoning of Seed-OSS, between ``<seed:think>`` tags.

The form is that of the template at https://huggingface.co/ByteDance-Seed/Seed-OSS-36B-Instruct.
"""

from ziggurat.serve.llm.reasoning_parsers import ReasoningParser


class SeedOssParser(ReasoningParser):
    """Reasoning between ``<seed:think>`` and ``</seed:think>``, if the answer has any."""

    tags = "<seed:think>", "</seed:think>"


PARSER = SeedOssParser()

"""Reader of a chat's answer: reasoning first, then text and tool calls.

>>> from ziggurat.serve.llm.reasoning_parsers import REASONING_PARSERS
>>> reader = AnswerReader(None, REASONING_PARSERS["qwen3"].stream(None))
>>> reader.read("<think>Two and two.</think>Four", ended=True)
[ReasoningDelta(text='Two and two.'), TextDelta(text='Four')]
"""

from ziggurat.serve.llm.reasoning_parsers import ReasoningDelta, ReasoningStream
from ziggurat.serve.llm.tool_parsers import CallStream, Delta, TextDelta

AnswerDelta = Delta | ReasoningDelta


class AnswerReader:
    """Takes reasoning and tool calls out of the text of one answer, which comes in pieces.

    Args:
        calls: reads tool calls in what follows the reasoning; ``None``: they stay in the text.
        reasoning: reads the reasoning; ``None``: it stays in the text.
    """

    def __init__(self, calls: CallStream | None, reasoning: ReasoningStream | None = None):
        self._calls, self._reasoning = calls, reasoning

    @property
    def called(self) -> bool:
        """Whether a tool has been called."""
        return self._calls is not None and self._calls.calls > 0

    def read(self, text: str, *, ended: bool) -> list[AnswerDelta]:
        """Add text; returns the deltas that are decided, all of them if the answer has ended."""
        reasoning, pieces = self._reasoning, list[ReasoningDelta | TextDelta]()
        if reasoning is not None:
            pieces += reasoning.push(text) + (reasoning.finish() if ended else [])
        elif text:
            pieces.append(TextDelta(text))
        out: list[AnswerDelta] = []
        for piece in pieces:
            if self._calls is None or isinstance(piece, ReasoningDelta):
                out.append(piece)
            else:
                out += self._calls.push(piece.text)
        if ended and self._calls is not None:
            out += self._calls.finish()
        return out

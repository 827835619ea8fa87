"""An engine that says a script, for tests of how answers are read."""

import threading
import types

from tests.serve.conftest import TEMPLATE

from ziggurat.data.tokenizers import byte_level
from ziggurat.serve.llm.engine import Engine, EngineConfig, EngineStatistics
from ziggurat.serve.llm.output_text import TokenEvent
from ziggurat.serve.llm.request import Timeline


class Scripted(Engine):
    """What the service needs of an engine; says a script, some characters at a time."""

    failure = None

    def __init__(self):
        self.vocab_size, self.max_length = 257, 4096
        self.tokenizer = byte_level({"eos_token": "<|end|>"})
        self.tokenizer.chat_templates["default"] = TEMPLATE
        self.settings, self.monitor = EngineConfig(), None
        self.script, self.size, self.reason, self.prompts = "", 3, "stop", []
        self.params = self.stop_text = None

    def statistics(self):
        return EngineStatistics(0, 0, 0.0, 1, 1, 0, 0, 0)

    def submit_together(self, requests, listener, **_):
        self.params = requests[-1][1]
        return [self._say(prompt, listener(place)) for place, (prompt, _) in enumerate(requests)]

    def _say(self, prompt, listener):
        self.prompts.append(self.tokenizer.decode(prompt))
        pieces = [self.script[i : i + self.size] for i in range(0, len(self.script), self.size)]
        events = [TokenEvent(0, piece) for piece in pieces]
        events.append(TokenEvent(256, "", finish_reason=self.reason, stop_text=self.stop_text))
        threading.Thread(target=lambda: [listener(event) for event in [*events, None]]).start()
        return types.SimpleNamespace(cancel=lambda: None, timeline=Timeline(0.0, 1, 1, 1))

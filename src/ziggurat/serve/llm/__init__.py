"""Language models behind OpenAI's API, or in this process.

>>> from ziggurat.serve.llm import SamplingParams
>>> SamplingParams(temperature=0.0, max_tokens=16).top_p
1.0
"""

from typing import TYPE_CHECKING

from ziggurat.core import lazy

if TYPE_CHECKING:
    from ziggurat.serve.llm.engine import Engine
    from ziggurat.serve.llm.offline import LLM, Completion, RequestOutput
    from ziggurat.serve.llm.sampling import SamplingParams
    from ziggurat.serve.llm.settings import EngineConfig

_HOMES = {
    "Completion": "offline",
    "Engine": "engine",
    "EngineConfig": "settings",
    "LLM": "offline",
    "RequestOutput": "offline",
    "SamplingParams": "sampling",
}

__all__ = ["LLM", "Completion", "Engine", "EngineConfig", "RequestOutput", "SamplingParams"]

__getattr__, __dir__ = lazy.names(__name__, _HOMES)

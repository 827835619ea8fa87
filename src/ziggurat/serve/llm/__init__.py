"""Language models behind OpenAI's API, or in this process.

>>> from ziggurat.serve.llm import SamplingParams
>>> SamplingParams(temperature=0.0, max_tokens=16).top_p
1.0
"""

from ziggurat.serve.llm.engine import Engine, EngineConfig
from ziggurat.serve.llm.offline import LLM, Completion, RequestOutput
from ziggurat.serve.llm.sampling import SamplingParams

__all__ = ["LLM", "Completion", "Engine", "EngineConfig", "RequestOutput", "SamplingParams"]

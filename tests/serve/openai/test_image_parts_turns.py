"""Conversations with pictures over several turns through the ``openai`` client: the answers of
transformers."""

import pytest
from prometheus_client import CollectorRegistry
from tests.models.families.test_qwen_vl import loaded
from tests.models.test_image_processor import file_of
from tests.oracle import qwen_vl
from tests.serve.conftest import serving
from tests.serve.openai.test_image_parts import data_uri

from ziggurat.serve.composition import Generator, openai_parts
from ziggurat.serve.llm.engine import EngineConfig
from ziggurat.serve.llm.offline import LLM

openai = pytest.importorskip("openai")
LIMITS = EngineConfig(
    max_running=2, max_prefill_chunk=32, max_batched_tokens=34, max_sequence_length=96, block_size=4
)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["qwen2_5_vl", "qwen3_vl"])
def test_a_conversation_of_several_turns(case):
    from PIL import Image

    uris = [data_uri(file_of(Image.fromarray(pixels))) for pixels in qwen_vl.pictures()]
    tokens, answer = qwen_vl.load(case).answers["turns"]
    expected = " ".join(f"t{token}" for token in answer)
    registry = CollectorRegistry()
    with LLM(loaded(case), LIMITS) as llm:
        parts = openai_parts(registry, Generator("vl", llm.engine, images=llm.images))
        with serving(parts, registry) as server:
            client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=300)
            for count in (1, 2):
                found = client.chat.completions.create(
                    model="vl",
                    messages=qwen_vl.messages(uris),
                    max_tokens=qwen_vl.NEW,
                    temperature=0,
                    n=count,
                    extra_body={"ignore_eos": True},
                )
                assert found.usage.prompt_tokens == len(tokens)
                assert [c.message.content.strip() for c in found.choices] == [expected] * count
            client.close()

"""Images whose tokens stand in lines with breaks, through the command, the engine and the
``openai`` client: the tokens of transformers."""

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from tests.models.families.test_pixtral import directory_of, loaded, prompt_of
from tests.models.test_image_processor import file_of
from tests.oracle import pixtral
from tests.serve.conftest import serving
from tests.serve.openai.test_image_parts import data_uri

from ziggurat.cli import generate
from ziggurat.core.errors import DataError
from ziggurat.models.vision_language_model import PreparedImage, image_spans
from ziggurat.serve.composition import Generator, openai_parts
from ziggurat.serve.llm.engine import EngineConfig
from ziggurat.serve.llm.offline import LLM
from ziggurat.serve.llm.sampling import SamplingParams

openai = pytest.importorskip("openai")
CASE = "mistral3"
LIMITS = EngineConfig(
    max_running=1, max_prefill_chunk=16, max_batched_tokens=17, max_sequence_length=128,
    block_size=4,
)  # fmt: skip
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def llm():
    with LLM(loaded(CASE), LIMITS) as made:
        yield made


def test_chunks_and_the_prefix_cache_give_the_tokens_of_transformers(llm):
    """Chunks of 16 tokens end within a line; another first picture gives other tokens."""
    tokens, images = prompt_of(CASE)
    expected = pixtral.load(CASE).generated.tolist()

    def answer(shown):
        given = llm.images.embedded(tokens, shown)
        return [event.token for event in llm.engine.submit(tokens, GREEDY, images=given)]

    assert answer(images) == expected
    hits = llm.engine.statistics().prefix_hits
    assert answer(images) == expected
    assert llm.engine.statistics().prefix_hits - hits >= len(tokens) - 2 * LIMITS.block_size
    first = images[0]
    other = PreparedImage(-first.pixels, first.tokens, first.grid, first.line)
    assert answer([other, images[1]]) != expected
    assert answer(images) == expected


def test_a_message_with_pictures_is_answered_as_by_transformers(llm):
    from PIL import Image

    urls = [data_uri(file_of(Image.fromarray(pixels))) for pixels in pixtral.pictures()]
    words = {"{0}": urls[0], "{1}": urls[1]}
    content = [
        {"type": "image_url", "image_url": {"url": words[word]}}
        if word in words
        else {"type": "text", "text": word}
        for word in pixtral.PROMPT.split()
    ]
    stored, registry = pixtral.load(CASE), CollectorRegistry()
    parts = openai_parts(registry, Generator("vl", llm.engine, images=llm.images))
    with serving(parts, registry) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=300)
        found = client.chat.completions.create(
            model="vl",
            messages=[{"role": "user", "content": content}],
            max_tokens=len(stored.generated),
            temperature=0,
            extra_body={"ignore_eos": True},
        )
        client.close()
    assert found.usage.prompt_tokens == len(stored.tokens)
    expected = llm.engine.tokenizer.decode(stored.generated.tolist())
    assert found.choices[0].message.content.split() == expected.split()


def test_the_command_continues_a_prompt_with_pictures(tmp_path, capsys):
    from PIL import Image

    paths = [tmp_path / f"{number}.png" for number in range(2)]
    for path, pixels in zip(paths, pixtral.pictures()):
        Image.fromarray(pixels).save(path)
    prompt = pixtral.PROMPT.replace("{0}", "[IMG]").replace("{1}", "[IMG]")
    args = [str(directory_of(CASE)), "--prompt", prompt, "--temperature", "0"]
    args += ["--max-tokens", "12", "--max-sequence-length", "128"]
    assert generate.main([*args, "--image", str(paths[0]), "--image", str(paths[1])]) == 0
    answer = pixtral.load(CASE).generated.tolist()
    kept = answer[: answer.index(2)] if 2 in answer else answer
    assert capsys.readouterr().out.strip() == loaded(CASE).tokenizer.decode(kept)


def test_lines_that_are_not_the_images():
    image = PreparedImage(np.zeros((6, 3), np.float32), 6, (2, 3), 3)
    row = [60, 60, 60, 58, 60, 60, 60, 59]
    assert image_spans(np.array(row), [image], 60) == [slice(0, 7)]
    for wrong in ([60] * 6, [60, 60, 58, 60, 60, 60, 60], [60, 60, 60, 58, 58, 60, 60, 60]):
        with pytest.raises(DataError, match="expected 6 image tokens one token behind every 3"):
            image_spans(np.array(wrong), [image], 60)

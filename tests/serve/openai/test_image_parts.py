"""``image_url`` parts: where pictures may come from, their limits, and answers to them."""

import base64
import json
import urllib.error
import urllib.request

import jax
import numpy as np
import pytest
from tests.models.test_image_processor import bomb, file_of, picture
from tests.models.test_vision_language_model import IMAGE, llava
from tests.oracle import multimodal
from tests.serve.conftest import serving

from ziggurat.data import HuggingFaceTokenizer
from ziggurat.models import VisionLanguageModel
from ziggurat.models.image_processor import ImageProcessorConfig
from ziggurat.models.loading.pretrained_vision_language import PretrainedVisionLanguage
from ziggurat.models.vision_language_generation import generate
from ziggurat.serve.errors import RequestError
from ziggurat.serve.llm.engine import EngineConfig
from ziggurat.serve.llm.image_reader import ImageLimits
from ziggurat.serve.llm.offline import LLM
from ziggurat.serve.openai.image_parts import ImageParts
from ziggurat.serve.openai.messages import conversation

TEMPLATE = (
    "{% for m in messages %}t3 {% for p in m.content %}"
    "{% if p.type == 'image' %}<image> {% else %}{{ p.text }} {% endif %}"
    "{% endfor %}t4 {% endfor %}"
)


def data_uri(content, head="data:image/png;base64,"):
    return head + base64.b64encode(content).decode()


def part(url):
    return {"type": "image_url", "image_url": {"url": url}}


@pytest.fixture
def root(tmp_path):
    (tmp_path / "outside.png").write_bytes(b"secret")
    home = tmp_path / "root"
    home.mkdir()
    (home / "a b.png").write_bytes(b"picture")
    (home / "link.png").symlink_to(tmp_path / "outside.png")
    return home


def test_pictures_are_taken_in_order(root):
    parts = ImageParts(ImageLimits(root=root))
    content = [{"type": "text", "text": "a"}, part(data_uri(b"one")), part("a b.png")]
    content += [part(f"file://{root}/a%20b.png"), {"type": "image_url", "image_url": "a b.png"}]
    [message] = conversation([{"role": "user", "content": content}], parts)
    assert [each["type"] for each in message["content"]] == ["text", *["image"] * 4]
    assert parts.pictures == [b"one", b"picture", b"picture", b"picture"]


def test_parts_of_responses_hold_pictures_too():
    parts = ImageParts(ImageLimits())
    given = {"type": "input_image", "image_url": data_uri(b"one"), "detail": "high"}
    content = [{"type": "input_text", "text": "a"}, given]
    [message] = conversation([{"role": "user", "content": content}], parts)
    assert [each["type"] for each in message["content"]] == ["text", "image"]
    assert parts.pictures == [b"one"]
    with pytest.raises(RequestError, match=r"content\[1\].detail: found original; expected auto"):
        conversation(
            [{"role": "user", "content": [content[0], given | {"detail": "original"}]}], parts
        )


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("https://example.org/a.png", "found a URL of https; expected a data URI, or a file"),
        ("http://127.0.0.1/a.png", "this server fetches nothing; send the picture itself"),
        ("ftp://example.org/a.png", "found a URL of ftp"),
        ("gopher:x", "found a URL of gopher"),
        ("data:image/png,abc", "expected data:image/...;base64,..."),
        ("data:image/png;base64,a*b=", "found broken base64"),
        ("data:image/png;base64," + "A" * 2000, "found 1,500 bytes; expected at most 1,000"),
        ("../outside.png", "found no such file; expected a file under --image-root"),
        ("link.png", "found no such file"),
        ("/etc/passwd", "found no such file"),
        ("file:///etc/passwd", "found no such file"),
        ("file://%2e%2e/outside.png", "found no such file"),
        ("a\0b", "found no such file"),
        ("", "found no such file"),
        (7, "found int; expected text"),
    ],
)
def test_pictures_that_are_refused(root, url, found):
    parts = ImageParts(ImageLimits(root=root, file_bytes=1000))
    with pytest.raises(RequestError) as caught:
        conversation([{"role": "user", "content": [part(url)]}], parts)
    assert found in str(caught.value)
    assert caught.value.param == "messages[0].content[0].image_url.url"
    assert not parts.pictures


def test_files_need_a_root_and_requests_a_limit():
    with pytest.raises(RequestError, match="files are read if the server has an --image-root"):
        ImageParts(ImageLimits()).add(part("a.png"), "messages[0]")
    parts = ImageParts(ImageLimits(count=2))
    parts.add(part(data_uri(b"1")), "x")
    parts.add(part(data_uri(b"2")), "x")
    with pytest.raises(RequestError, match="more than 2 images; expected at most 2"):
        parts.add(part(data_uri(b"3")), "x")
    with pytest.raises(RequestError, match="detail: found"):
        parts.add({"image_url": {"url": data_uri(b"1"), "detail": "ultra"}}, "x")


def test_only_users_show_pictures():
    parts, content = ImageParts(ImageLimits()), [part(data_uri(b"1"))]
    for role in ("system", "assistant"):
        with pytest.raises(RequestError, match="found 'image_url'; expected text"):
            conversation([{"role": role, "content": content}], parts)
    with pytest.raises(RequestError, match="since this model reads nothing else"):
        conversation([{"role": "user", "content": content}])


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    # a token of one letter and a number would be a possible end of many a text
    multimodal.save_tokenizer(path, t0="<unk>", t1="<s>", t2="</s>", t60="<image>")
    tokenizer = HuggingFaceTokenizer.load(path)
    tokenizer.chat_templates["default"] = TEMPLATE
    model = VisionLanguageModel.build(llava())
    params = model.init(jax.random.key(0))
    noise = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: (x + 0.3 * noise.normal(size=x.shape)).astype(np.float32), params
    )
    return PretrainedVisionLanguage(
        model=model.language,
        params=params["language"],
        tokenizer=tokenizer,
        name="llava",
        source="test",
        vision=model,
        tower=params["tower"],
        processor=ImageProcessorConfig(height=8, width=8),
    )


@pytest.fixture(scope="module")
def server(loaded):
    from prometheus_client import CollectorRegistry

    from ziggurat.serve.composition import Generator, openai_parts

    settings = EngineConfig(max_running=2, max_sequence_length=64, block_size=4)
    registry = CollectorRegistry()
    with LLM(loaded, settings, images=ImageLimits(count=2)) as llm:
        parts = openai_parts(registry, Generator("llava", llm.engine, images=llm.images))
        with serving(parts, registry) as made:
            yield made


def ask(server, content, **fields):
    body = {"model": "llava", "messages": [{"role": "user", "content": content}], "max_tokens": 4}
    body |= {"temperature": 0, "ignore_eos": True, **fields}
    request = urllib.request.Request(
        f"{server.url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@pytest.mark.slow
def test_an_answer_is_that_of_plain_generation(server, loaded):
    for seed in (0, 1):
        image = picture(seed=seed)
        content = [{"type": "text", "text": "t5 t6"}, part(data_uri(file_of(image)))]
        content.append({"type": "text", "text": "t7"})
        status, answer = ask(server, content)
        assert status == 200, answer
        images = loaded.prepare([image])
        tokens = [3, 5, 6, *[IMAGE] * 4, 7, 4]
        [expected] = generate(loaded.vision, loaded.params, loaded.prompt([tokens], [images]), 4)
        assert answer["usage"]["prompt_tokens"] == len(tokens)
        said = answer["choices"][0]["message"]["content"]
        assert said.split() == loaded.tokenizer.decode(expected).split()


def test_text_of_a_placeholder_is_text(server):
    """A user who writes the placeholder gets no image token by it."""
    content = [{"type": "text", "text": "<image>"}, part(data_uri(file_of(picture())))]
    status, answer = ask(server, content)
    assert status == 200, answer
    unknown = answer["usage"]["prompt_tokens"] - len(["t3", *[IMAGE] * 4, "t4"])
    assert unknown == 1  # the text is one word that the vocabulary has not
    status, answer = ask(server, [{"type": "text", "text": "<image>"}])
    assert (status, answer["usage"]["prompt_tokens"]) == (200, 3)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"no picture", "found another file; expected one of PNG"),
        (file_of(picture())[:60], "found"),
        (bomb(5000, 5000), "found 5,000 x 5,000 pixels; expected at most 16,000,000 pixels"),
    ],
)
def test_what_is_no_picture(server, content, found):
    status, answer = ask(server, [part(data_uri(content)), {"type": "text", "text": "t5"}])
    assert status == 400
    assert found in answer["error"]["message"]


def test_too_many_pictures(server):
    content = [part(data_uri(file_of(picture())))] * 3
    status, answer = ask(server, content)
    assert (status, answer["error"]["param"]) == (400, "messages[0].content[2]")

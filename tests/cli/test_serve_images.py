"""``ziggurat serve MODEL --image-root DIR`` as a process: pictures that it reads, and those not."""

import subprocess
import sys

import pytest
from tests.models.families.test_qwen_vl import directory_of
from tests.models.test_image_processor import file_of
from tests.oracle import qwen_vl

openai = pytest.importorskip("openai")
CASE = "qwen3_vl"
OPTIONS = [
    *("--max-running", "1", "--max-batched-tokens", "16", "--max-sequence-length", "96"),
    *("--port", "0", "--name", "vl", "--image-root"),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A directory with the pictures, and beside it one with a picture that is not to be read."""
    from PIL import Image

    home = tmp_path_factory.mktemp("pictures") / "root"
    (home / "sub").mkdir(parents=True)
    first, second = [file_of(Image.fromarray(pixels)) for pixels in qwen_vl.pictures()]
    (home / "first.png").write_bytes(first)
    (home / "sub" / "second one.png").write_bytes(second)
    (home.parent / "outside.png").write_bytes(first)
    (home / "link.png").symlink_to(home.parent / "outside.png")
    return home


@pytest.fixture(scope="module")
def client(root):
    options = [str(directory_of(CASE)), *OPTIONS, str(root)]
    program = f"import sys; from ziggurat.cli.serve import main; sys.exit(main({options!r}))"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        url = lines[-1].removeprefix("serving vl on ").strip()
        assert url.startswith("http://127.0.0.1:"), lines
        with openai.OpenAI(base_url=url, api_key="none", max_retries=8, timeout=300) as made:
            yield made
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def ask(client, messages):
    found = client.chat.completions.create(
        model="vl",
        messages=messages,
        max_tokens=qwen_vl.NEW,
        temperature=0,
        extra_body={"ignore_eos": True},
    )
    return found.choices[0].message.content.split()


@pytest.mark.slow
def test_files_under_the_root_are_read(client, root):
    """By ``file://``, and by a path from the root on: the answer of transformers."""
    answer = [f"t{token}" for token in qwen_vl.load(CASE).answers["turns"][1]]
    urls = [(root / "first.png").as_uri(), (root / "sub" / "second one.png").as_uri()]
    assert ask(client, qwen_vl.messages(urls)) == answer
    assert ask(client, qwen_vl.messages(["first.png", "sub/second one.png"])) == answer


@pytest.mark.parametrize(
    "url", ["file://{}/../outside.png", "file://{}/link.png", "../outside.png", "file:///etc/hosts"]
)
def test_files_elsewhere_are_refused(client, root, url):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, qwen_vl.messages([url.format(root)] * 2))
    assert "found no such file; expected a file under --image-root" in str(caught.value)
    assert caught.value.param == "messages[0].content[1].image_url.url"


def test_remote_addresses_are_refused(client):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, qwen_vl.messages(["https://127.0.0.1:1/a.png"] * 2))
    assert caught.value.body["message"] == (
        "messages[0].content[1].image_url.url: found a URL of https; expected a data URI, or a "
        "file under --image-root; this server fetches nothing; send the picture itself"
    )

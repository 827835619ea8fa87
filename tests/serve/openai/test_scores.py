"""``/score`` and ``/rerank`` over a scorer that counts common words."""

import json
import urllib.error
import urllib.request

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from tests.serve.conftest import serving

from ziggurat.data.tokenizers import byte_level
from ziggurat.serve.composition import Embedder, openai_parts


class CommonWords:
    """Score of a pair: the share of the first text's words that stand in the second."""

    vocab_size, max_length = 256, 40

    def score(self, pairs):
        scores = [len(set(a.split()) & set(b.split())) / len(set(a.split())) for a, b in pairs]
        return np.array(scores, np.float32), sum(len(a) + len(b) for a, b in pairs)


@pytest.fixture(scope="module")
def server():
    registry = CollectorRegistry()
    parts = openai_parts(registry, embedder=Embedder("words", None, byte_level(), CommonWords()))
    with serving(parts, registry) as made:
        yield made


def ask(server, path, body):
    request = urllib.request.Request(server.url + path, json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_rerank_sorts_documents_by_score(server, path):
    body = {"model": "words", "query": "a b", "documents": ["c", {"text": "b a"}, "a x"]}
    status, answer = ask(server, path, body)
    assert status == 200
    assert [r["index"] for r in answer["results"]] == [1, 2, 0]
    assert [r["relevance_score"] for r in answer["results"]] == [1.0, 0.5, 0.0]
    assert answer["results"][0]["document"] == {"text": "b a"}
    assert answer["usage"]["total_tokens"] == 3 * 3 + 1 + 3 + 3
    _, short = ask(server, path, body | {"top_n": 1, "return_documents": False})
    assert short["results"] == [{"index": 1, "relevance_score": 1.0}]


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
def test_score_pairs_texts(server, path):
    status, answer = ask(server, path, {"model": "words", "text_1": "a b", "text_2": ["a", "b a"]})
    assert status == 200
    assert [(d["index"], d["object"], d["score"]) for d in answer["data"]] == [
        (0, "score", 0.5), (1, "score", 1.0),
    ]  # fmt: skip
    many = {"model": "words", "queries": ["a", "b"], "documents": ["b", "b"]}
    assert [d["score"] for d in ask(server, path, many)[1]["data"]] == [0.0, 1.0]
    one = {"model": "words", "text_1": "a", "text_2": "a"}
    assert [d["score"] for d in ask(server, path, one)[1]["data"]] == [1.0]


@pytest.mark.parametrize(
    ("path", "change", "part"),
    [
        ("/score", {"text_1": ["a", "b"], "text_2": ["a"] * 3}, "2 and 3 texts"),
        ("/score", {"text_1": "a"}, "text_2: found absent"),
        ("/score", {"text_1": "a", "queries": "b", "text_2": "c"}, "found both"),
        ("/score", {"text_1": [], "text_2": "c"}, "text_1: found none"),
        ("/score", {"text_1": "a", "text_2": ["b"] * 3000}, "3000"),
        ("/score", {"text_1": "a" * 2_000_000, "text_2": "b"}, "characters"),
        ("/rerank", {"query": "a", "documents": []}, "documents: found none"),
        ("/rerank", {"query": "a", "documents": [{"text": 1}]}, "documents"),
        ("/rerank", {"query": "a", "documents": [{"text": "b", "image": "c"}]}, "documents"),
        ("/rerank", {"query": "a", "documents": ["b"], "top_n": -1}, "top_n"),
        ("/rerank", {"query": "a", "documents": ["b"], "truncate": 3}, "truncate"),
    ],
)
def test_what_is_wrong_is_refused_by_name(server, path, change, part):
    status, answer = ask(server, path, {"model": "words"} | change)
    assert status == 400
    assert part in answer["error"]["message"]


def test_another_model_is_not_found(server):
    assert ask(server, "/score", {"model": "x", "text_1": "a", "text_2": "b"})[0] == 404
    with urllib.request.urlopen(server.url + "/v1/models", timeout=60) as response:
        assert [card["id"] for card in json.loads(response.read())["data"]] == ["words"]

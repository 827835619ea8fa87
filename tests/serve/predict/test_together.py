"""A language model and bundles from one process: one port, one page of metrics, one readiness."""

import json
import urllib.error
import urllib.request

import pytest
from prometheus_client import CollectorRegistry
from tests.serve.conftest import serving

from ziggurat.serve.composition import Generator, openai_parts
from ziggurat.serve.predict import Predict


def ask(url, path, body=None, key="sesame"):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read()


def test_both_apis_answer_on_one_port(engine, made):
    registry = CollectorRegistry()
    with Predict(made) as predict:
        predict.register(registry)
        parts = [*openai_parts(registry, Generator("tiny", engine)), predict.part()]
        with serving(parts, registry, keys=["sesame"]) as server:
            completion = {"model": "tiny", "prompt": "ab", "max_tokens": 3}
            text = json.loads(ask(server.url, "/v1/completions", completion))
            assert text["usage"]["completion_tokens"] >= 1
            tensor = {"name": "x", "datatype": "FP32", "shape": [1, 16], "data": [0.0] * 16}
            answer = json.loads(ask(server.url, "/v2/models/digits/infer", {"inputs": [tensor]}))
            assert [entry["name"] for entry in answer["outputs"]] == ["probabilities", "label"]
            metrics = ask(server.url, "/metrics").decode()
            assert "vllm:generation_tokens_total" in metrics
            assert 'nv_inference_request_success{model="digits",version="2"} 1.0' in metrics
            assert 'nv_inference_request_failure{model="digits",reason="REJECTED"' in metrics
            assert json.loads(ask(server.url, "/ready"))["ready"]
            assert json.loads(ask(server.url, "/v2/health/ready", key=""))["ready"]
            for path in ("/v1/models", "/v2/models/digits"):
                with pytest.raises(urllib.error.HTTPError, match="401"):
                    ask(server.url, path, key="other")

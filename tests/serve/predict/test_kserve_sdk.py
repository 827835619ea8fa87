"""What KServe's own Python SDK (0.21) sends, without needing the SDK."""

import http.client
import json

import grpc
import numpy as np
import pytest

from ziggurat.serve.predict.messages import MESSAGES, SERVICE

X = np.arange(16, dtype=np.float32).reshape(1, 16) / 16


def post(server, body, headers=()):
    connection = http.client.HTTPConnection(server.http, timeout=60)
    connection.request("POST", "/v2/models/digits/infer", body, dict(headers))
    response = connection.getresponse()
    answer = response.read()
    split = int(response.headers.get("inference-header-content-length", len(answer)))
    connection.close()
    assert response.status == 200, answer
    return json.loads(answer[:split]), answer[split:]


def rest(**fields):
    """The SDK's body: an id, the model's name, and null for what is not given."""
    entry = {"name": "x", "shape": [1, 16], "datatype": "FP32"}
    return {
        "id": "7f3c", "model_name": "digits", "inputs": [{**entry, **fields}], "outputs": None,
        "parameters": None,
    }  # fmt: skip


def test_rest_with_numbers(server):
    for extra in ({}, {"parameters": {"a": "b"}}, {"parameters": {}, "outputs": []}):
        body = rest(data=X.ravel().tolist(), parameters=None) | extra
        answer, _ = post(server, json.dumps(body))
        assert answer["id"] == "7f3c"
        assert [output["name"] for output in answer["outputs"]] == ["probabilities", "label"]


def test_rest_with_bytes(server):
    body = rest(parameters={"binary_data_size": X.nbytes})
    body["outputs"] = [{"name": "label", "parameters": {"binary_data": True}}]
    head = json.dumps(body).encode()
    headers = {
        "inference-header-content-length": str(len(head)),
        "content-type": "application/octet-stream",
    }
    answer, tail = post(server, head + X.tobytes(), headers)
    assert answer["outputs"][0]["parameters"]["binary_data_size"] == len(tail) == 4


def test_rest_as_mlserver_clients_say_it(server):
    """Content types beside the data are for codecs of the client's own."""
    body = rest(data=X.tolist(), parameters={"content_type": "np"})
    body["parameters"] = {"content_type": "np", "headers": {"x": "y"}}
    answer, _ = post(server, json.dumps(body))
    assert len(answer["outputs"]) == 2


@pytest.mark.parametrize("size", [X.nbytes, X.nbytes + 4])
def test_grpc_repeats_the_size_of_raw_contents(server, size):
    """The SDK sends the input's parameter binary_data_size, which must be true."""
    request = MESSAGES["ModelInferRequest"](model_name="digits", id="7f3c")
    entry = request.inputs.add(name="x", datatype="FP32", shape=[1, 16])
    entry.parameters["binary_data_size"].int64_param = size
    request.raw_input_contents.append(X.tobytes())
    with grpc.insecure_channel(server.grpc) as channel:
        call = channel.unary_unary(f"/{SERVICE}/ModelInfer").future(request.SerializeToString())
        if size != X.nbytes:
            assert call.code() == grpc.StatusCode.INVALID_ARGUMENT
            return
        answer = MESSAGES["ModelInferResponse"].FromString(call.result(60))
    assert answer.id == "7f3c"
    assert len(answer.raw_output_contents) == 2


def test_grpc_with_lists_of_numbers(server):
    request = MESSAGES["ModelInferRequest"](model_name="digits")
    entry = request.inputs.add(name="x", datatype="FP32", shape=[1, 16])
    entry.contents.fp32_contents.extend(X.ravel())
    with grpc.insecure_channel(server.grpc) as channel:
        call = channel.unary_unary(f"/{SERVICE}/ModelInfer").future(request.SerializeToString())
        assert len(MESSAGES["ModelInferResponse"].FromString(call.result(60)).outputs) == 2

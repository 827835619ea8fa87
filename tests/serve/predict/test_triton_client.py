"""Conformance by Triton's own client, over HTTP and gRPC."""

import numpy as np
import pytest
from tests.serve.predict.conftest import TYPES, classify, encode, table, weights

from ziggurat.serve.predict.signature import DATATYPES

grpcclient = pytest.importorskip("tritonclient.grpc")
httpclient = pytest.importorskip("tritonclient.http")


@pytest.fixture(params=["http", "grpc"])
def kind(request):
    return request.param


@pytest.fixture
def triton(kind):
    return {"http": httpclient, "grpc": grpcclient}[kind]


@pytest.fixture
def client(server, kind, triton):
    made = triton.InferenceServerClient(getattr(server, kind))
    yield made
    made.close()


def plain(answer):
    """A client's answer as dicts, whichever way it came."""
    if isinstance(answer, (dict, list)):
        return answer
    from google.protobuf import json_format

    return json_format.MessageToDict(
        answer, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def infer(client, triton, model, inputs, outputs=None, **options):
    given = []
    for name, (datatype, array) in inputs.items():
        entry = triton.InferInput(name, list(array.shape), datatype)
        entry.set_data_from_numpy(array)
        given.append(entry)
    asked = outputs and [triton.InferRequestedOutput(name) for name in outputs]
    return client.infer(model, given, outputs=asked, **options)


def test_health_and_metadata(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert client.is_model_ready("digits", "1")
    assert not client.is_model_ready("digits", "3")
    assert not client.is_model_ready("nothing")
    server = plain(client.get_server_metadata())
    assert server["name"] == "ziggurat"
    assert "binary_tensor_data" in server["extensions"]
    model = plain(client.get_model_metadata("encoder"))
    assert model["versions"] == ["1"]
    shapes = {entry["name"]: list(map(int, entry["shape"])) for entry in model["inputs"]}
    assert shapes == {"tokens": [-1, -1], "mask": [-1, -1]}
    assert model["outputs"][0]["datatype"] == "FP32"
    assert list(map(int, model["outputs"][0]["shape"])) == [-1, 4]


def test_configuration(client):
    found = plain(client.get_model_config("digits"))
    found = found.get("config", found)
    assert found["max_batch_size"] == 8
    assert int(found["dynamic_batching"]["max_queue_delay_microseconds"]) == 1000
    assert found["input"][0]["data_type"] == "TYPE_FP32"
    assert list(map(int, found["input"][0]["dims"])) == [16]
    assert "all" in found["version_policy"]


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_outputs_are_the_functions_own(client, triton, rows):
    x = np.random.default_rng(rows).standard_normal((rows, 16)).astype(np.float32)
    answer = infer(client, triton, "digits", {"x": ("FP32", x)}, model_version="1", request_id="7")
    probabilities, label = classify(weights(), x, np)
    np.testing.assert_allclose(answer.as_numpy("probabilities"), probabilities, 1e-5, 1e-6)
    assert answer.as_numpy("label").tolist() == label.tolist()
    head = plain(answer.get_response())
    assert (head["id"], head["model_version"]) == ("7", "1")


def test_the_highest_version_answers_when_none_is_named(client, triton):
    x = {"x": ("FP32", np.ones((1, 16), np.float32))}
    first = infer(client, triton, "digits", x, ["probabilities"], model_version="1")
    second = infer(client, triton, "digits", x, ["probabilities"])
    assert plain(second.get_response())["model_version"] == "2"
    assert not np.allclose(first.as_numpy("probabilities"), second.as_numpy("probabilities"))
    assert first.as_numpy("label") is None


@pytest.mark.parametrize("length", [1, 3, 4, 7, 8])
def test_a_padded_size_changes_nothing(client, triton, length):
    draw = np.random.default_rng(length)
    tokens = draw.integers(0, 50, (2, length)).astype(np.int32)
    mask = np.ones_like(tokens)
    given = {"tokens": ("INT32", tokens), "mask": ("INT32", mask)}
    found = infer(client, triton, "encoder", given).as_numpy("embedding")
    np.testing.assert_allclose(found, encode(table(), tokens, mask, np)["embedding"], 1e-5, 1e-6)


def test_every_type_comes_back_as_it_went(client, triton):
    given = {}
    for kind in TYPES:
        given[kind.lower()] = (kind, np.array([[0, 1], [1, 0]]).astype(DATATYPES[kind]))
    answer = infer(client, triton, "echo", given)
    for name, (_, array) in given.items():
        back = answer.as_numpy(f"{name}_out")
        assert back.dtype == array.dtype
        np.testing.assert_array_equal(back, array)


def test_errors_name_what_is_wrong(client, triton):
    from tritonclient.utils import InferenceServerException

    x = np.ones((1, 16), np.float32)
    for model, inputs, options, said in (
        ("nothing", {"x": ("FP32", x)}, {}, "model: found 'nothing'"),
        ("digits", {"x": ("FP32", x)}, {"model_version": "9"}, "expected one of 1, 2"),
        ("digits", {"y": ("FP32", x)}, {}, "input: found 'y'; expected one of x"),
        ("digits", {"x": ("FP64", x.astype(np.float64))}, {}, "found datatype FP64"),
        ("digits", {"x": ("FP32", x[:, :4])}, {}, "found shape [1, 4]; expected [b, 16]"),
        ("digits", {"x": ("FP32", np.ones((9, 16), np.float32))}, {}, "b: found 9; expected at"),
        ("digits", {"x": ("BYTES", np.array([[b"a"] * 16], np.object_))}, {}, "tokenise"),
        ("digits", {"x": ("FP32", x)}, {"sequence_id": 5}, "parameter sequence_id: found 5"),
    ):
        with pytest.raises(InferenceServerException) as caught:
            infer(client, triton, model, inputs, **options)
        assert said in caught.value.message()


def test_a_timeout_in_the_queue_is_honoured(client, triton, server):
    x = {"x": ("FP32", np.ones((1, 16), np.float32))}
    assert infer(client, triton, "digits", x, timeout=10_000_000).as_numpy("label") is not None
    from tritonclient.utils import InferenceServerException

    with pytest.raises(InferenceServerException, match="a longer wait in the queue"):
        infer(client, triton, "digits", x, timeout=1)  # the queue waits 1000 us for company


def test_statistics_add_up(client, triton):
    def figures():
        found = plain(client.get_inference_statistics("digits", "1"))["model_stats"][0]
        parts = {k: int(v["count"]) for k, v in found["inference_stats"].items()}
        batches = {
            int(b["batch_size"]): int(b["compute_infer"]["count"]) for b in found["batch_stats"]
        }
        return int(found["inference_count"]), int(found["execution_count"]), parts, batches

    rows, executions, parts, batches = figures()
    for n in (2, 3):
        x = {"x": ("FP32", np.ones((n, 16), np.float32))}
        infer(client, triton, "digits", x, model_version="1")
    with pytest.raises(Exception, match="found datatype FP64"):
        infer(client, triton, "digits", {"x": ("FP64", np.ones((1, 16)))}, model_version="1")
    after = figures()
    assert after[2]["fail"] == parts["fail"] + 1
    assert after[0] == rows + 5
    assert after[1] == executions + 2 == sum(after[3].values())
    assert after[3][2] == batches.get(2, 0) + 1
    assert after[2]["success"] == parts["success"] + 2 == after[2]["compute_infer"]
    assert after[2]["queue"] == after[2]["success"]
    assert sum(size * count for size, count in after[3].items()) == after[0]


@pytest.mark.slow
def test_repository_calls(client, triton):
    def states():
        index = plain(client.get_model_repository_index())
        index = index["models"] if isinstance(index, dict) else index
        return {(e["name"], e["version"]): e["state"] for e in index}

    from tritonclient.utils import InferenceServerException

    assert set(states().values()) == {"READY"}
    client.unload_model("echo")
    assert not client.is_model_ready("echo")
    assert states()["echo", "1"] == "UNAVAILABLE"
    assert client.is_server_ready()
    client.load_model("echo")
    assert client.is_model_ready("echo")
    for name in ("../digits", "..", "digits/1", "nothing", "a" * 300):
        with pytest.raises(InferenceServerException):
            client.load_model(name)
    with pytest.raises(InferenceServerException, match="parameter config"):
        client.load_model("echo", config="{}")
    assert set(states().values()) == {"READY"}


def test_asynchronous_and_streamed_calls(server):
    import queue

    answers: queue.Queue = queue.Queue()
    with grpcclient.InferenceServerClient(server.grpc) as client:
        entry = grpcclient.InferInput("x", [2, 16], "FP32")
        entry.set_data_from_numpy(np.ones((2, 16), np.float32))
        bad = grpcclient.InferInput("x", [2, 3], "FP32")
        bad.set_data_from_numpy(np.ones((2, 3), np.float32))
        client.start_stream(lambda result, error: answers.put((result, error)))
        for number, given in enumerate((entry, bad, entry)):
            client.async_stream_infer("digits", [given], request_id=str(number))
        got = [answers.get(timeout=30) for _ in range(3)]
        client.stop_stream()
        assert [error is None for _, error in got] == [True, False, True]
        assert got[2][0].get_response().id == "2"
        client.async_infer("digits", [entry], lambda result, error: answers.put((result, error)))
        result, error = answers.get(timeout=30)
        assert error is None
        assert result.as_numpy("label").shape == (2,)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_bodies(server, algorithm):
    with httpclient.InferenceServerClient(server.http) as client:
        x = {"x": ("FP32", np.ones((2, 16), np.float32))}
        options = {"request_compression_algorithm": algorithm}
        assert infer(client, httpclient, "digits", x, **options).as_numpy("label").shape == (2,)


def test_json_in_and_out(server):
    with httpclient.InferenceServerClient(server.http) as client:
        entry = httpclient.InferInput("x", [2, 16], "FP32")
        x = np.random.default_rng(0).standard_normal((2, 16)).astype(np.float32)
        entry.set_data_from_numpy(x, binary_data=False)
        asked = [httpclient.InferRequestedOutput("probabilities", binary_data=False)]
        answer = client.infer("digits", [entry], model_version="1", outputs=asked)
        np.testing.assert_allclose(
            answer.as_numpy("probabilities"), classify(weights(), x, np)[0], 1e-5, 1e-6
        )
        assert "data" in answer.get_response()["outputs"][0]

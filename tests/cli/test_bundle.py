"""``ziggurat bundle`` and ``ziggurat serve REPOSITORY``: from a module to answers."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pytest

from ziggurat.cli.main import main

MODULE = """
import jax.numpy as jnp

def score(params, x):
    return jnp.tanh(x @ params["kernel"])

def mean(values, mask):
    return (values * mask).sum(1) / mask.sum(1)

WEIGHTS = {"kernel": jnp.ones((4, 2))}

def make():
    return score, WEIGHTS
"""
SCORE = ["--signature", "x:FP32[b,4] -> score"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A module of functions, its weights in a file, and a bundle."""
    from ziggurat.formats import write_sharded

    made = tmp_path_factory.mktemp("bundles")
    (made / "scorer.py").write_text(MODULE)
    write_sharded(made, [("kernel", np.ones((4, 2), np.float32))], stem="weights")
    np.savez(made / "golden.npz", x=np.arange(8, dtype=np.float32).reshape(2, 4))
    before = os.getcwd()
    os.chdir(made)
    try:
        args = ["bundle", "export", "scorer:score", "models/scorer/1", *SCORE]
        args += ["--params", "weights.safetensors", "--golden", "golden.npz", "--label", "team=a"]
        assert main(args) == 0
        yield made
    finally:
        os.chdir(before)


def test_export_inspect_verify(folder, capsys):
    assert main(["bundle", "inspect", "models/scorer/1"]) == 0
    shown = capsys.readouterr().out
    for line in ("inputs        x:FP32[b,4]", "outputs       score:FP32[b,2]", "label team    a",
                 "golden pairs  1, recorded on cpu", "platforms     cpu, cuda, tpu"):  # fmt: skip
        assert line in shown
    assert main(["bundle", "inspect", "models/scorer/1", "--json"]) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert manifest == json.loads((folder / "models/scorer/1/manifest.json").read_text())
    assert main(["bundle", "verify", "models/scorer/1", "--replay"]) == 0
    assert "4 files intact, 1 golden pairs reproduced" in capsys.readouterr().out
    damaged = shutil.copytree(folder / "models/scorer/1", folder / "damaged")
    (damaged / "program").write_bytes(b"x")
    assert main(["bundle", "verify", "damaged"]) == 2
    assert "damaged: program: found 1 bytes" in capsys.readouterr().err


def test_other_sources_of_weights_and_sizes(folder, capsys):
    args = ["bundle", "export", "scorer:make", "models/scorer/2", "--factory", *SCORE]
    assert main(args) == 0
    args = ["bundle", "export", "scorer:mean", "mean", "--sizes", "t=4,8", "--platforms", "cpu"]
    args += ["--signature", "values:FP32[b,t] mask:FP32[b,t] -> mean", "--golden", "mean.npz"]
    np.savez("mean.npz", values=np.ones((1, 3), np.float32), mask=np.ones((1, 3), np.float32))
    assert main(args) == 0
    assert main(["bundle", "inspect", "mean"]) == 0
    assert "sizes of t    4, 8" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (
            ["bundle", "exprt"],
            "found 'exprt'; expected one of export, encoder, images, inspect, verify; did you",
        ),
        (["export", "scorer", "p", *SCORE], "target: found 'scorer'; expected MODULE:NAME"),
        (["export", "scorer:none", "p", *SCORE], "AttributeError: module 'scorer' has no attr"),
        (["export", "nothing:x", "p", *SCORE], "No module named 'nothing'"),
        (["export", "scorer:score", "p", *SCORE, "--params", "no.npz"], "found no file no.npz"),
        (["export", "scorer:score", "p", *SCORE, "--sizes", "t"], "--sizes: found 't'"),
        (["export", "scorer:score", "p", *SCORE, "--sizes", "t=a"], "such as t=16,32,64"),
        (["export", "scorer:score", "p", *SCORE], "tracing the function: found TypeError"),
        (["export", "scorer:score", "models/scorer/1", *SCORE], "found it is there already"),
        (["verify", "nothing"], "manifest.json: No such file or directory"),
    ],
)
def test_errors_are_one_line(folder, args, said, capsys):
    assert main(args if args[0] == "bundle" else ["bundle", *args]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("error: ") == 1


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["models/scorer/1"], "found one bundle; expected the repository that holds it"),
        (["models", "--max-running", "3"], "--max-running: found 3; expected no such option"),
        (["no-model", "--grpc-port", "0"], "--grpc-port: found 0; expected this option with a rep"),
        (["models", "--devices", "99"], "devices: found 8; expected 99"),
        (["models", "--load", "other"], "model: found 'other'"),
    ],
)
def test_options_of_serve_that_cannot_be_met(folder, args, said, capsys):
    assert main(["serve", *args, "--port", "0"]) == 2
    assert said in capsys.readouterr().err


def wait_for(url):
    for attempt in range(400):
        try:
            return urllib.request.urlopen(url, timeout=60)
        except urllib.error.URLError:
            assert attempt < 399
            time.sleep(0.05)
    return None


@pytest.mark.slow
def test_a_server_process_of_a_repository(folder):
    grpcclient = pytest.importorskip("tritonclient.grpc")
    options = ["models", "--port", "0", "--grpc-port", "0", "--api-key", "sesame"]
    program = (
        f"import sys; from ziggurat.cli.serve import main; code = main({options!r}); "
        "print([name for name in sys.modules if name.startswith(('flax', 'ziggurat.models'))]); "
        "sys.exit(code)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=folder
    )
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(4)]
        assert lines[0] == "models: loading bundles\n"
        assert lines[1].endswith(": x:FP32[b,4] -> score:FP32[b,2]\n")
        url = lines[2].split(" on ")[1].strip().removesuffix("/v2")
        port = lines[3].removeprefix("serving gRPC on port ").strip()
        assert json.load(wait_for(url + "/v2/health/ready"))["ready"]
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(url + "/v2/models/scorer")
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0.0] * 4}
        body = json.dumps({"inputs": [tensor]}).encode()
        request = urllib.request.Request(
            url + "/v2/models/scorer/infer", body, {"authorization": "Bearer sesame"}
        )
        answer = json.load(urllib.request.urlopen(request, timeout=60))
        assert answer["outputs"][0]["data"] == [0.0, 0.0]
        metrics = urllib.request.urlopen(url + "/metrics").read().decode()
        version = answer["model_version"]
        assert f'nv_inference_count{{model="scorer",version="{version}"}} 1.0' in metrics
        with grpcclient.InferenceServerClient(f"127.0.0.1:{port}") as client:
            key = {"authorization": "Bearer sesame"}
            assert client.is_model_ready("scorer", headers=key)
            with pytest.raises(Exception, match="API key: found none that is known"):
                client.is_model_ready("scorer")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.stdout.read().splitlines()[-1] == "[]"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()

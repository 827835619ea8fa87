"""Bundles: what export writes and refuses, and that no byte of one can change unseen."""

import dataclasses
import json
import random
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.serve.predict.conftest import encode, table

from ziggurat.core.errors import ServeError
from ziggurat.serve.predict import LoadedBundle, Predict, Signature, export, verify
from ziggurat.serve.predict import manifest as manifests
from ziggurat.serve.predict.manifest import BundleError


@pytest.fixture(scope="module")
def bundle(made):
    return made / "digits" / "1"


@pytest.fixture
def copy(bundle, tmp_path):
    return shutil.copytree(bundle, tmp_path / "copy")


def files_of(path):
    return sorted(file for file in path.rglob("*") if file.is_file())


def test_layout_and_manifest(bundle):
    names = {file.relative_to(bundle).as_posix() for file in files_of(bundle)}
    assert names == {
        "manifest.json",
        "program",
        "weights/model.safetensors",
        "golden/case-0.safetensors",
        "golden/case-1.safetensors",
    }
    manifest, digest = verify(bundle)
    assert manifest.platforms == ("cpu", "cuda", "tpu")
    assert str(manifest.signature.inputs[0]) == "x:FP32[b,16]"
    assert [str(t) for t in manifest.signature.outputs] == [
        "probabilities:FP32[b,3]",
        "label:INT32[b]",
    ]
    assert [entry.name for entry in manifest.weights] == ["one.bias", "one.kernel", "two.kernel"]
    assert manifest.tools["jax"] == jax.__version__
    assert json.loads((bundle / "manifest.json").read_text())["digest"] == digest


def test_any_changed_byte_of_any_file_is_found(copy):
    draw = random.Random(0)
    for file in files_of(copy):
        content = file.read_bytes()
        whole = file.name == manifests.FILE
        places = draw.sample(range(len(content)), 300 if whole else 25)
        for place in places:
            changed = bytearray(content)
            changed[place] ^= 1 << draw.randrange(8)
            file.write_bytes(changed)
            with pytest.raises(BundleError):
                (manifests.read if whole else verify)(copy)
        file.write_bytes(content)
    verify(copy)


def test_a_changed_byte_is_found_before_a_server_is_ready(copied):
    file = copied / "digits" / "2" / "weights" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with Predict(copied) as predict:
        assert "digits/2: weights/model.safetensors: found SHA-256" in predict.failed["digits"]
        assert {v.model for v in predict.repository.serving()} == {"encoder", "echo"}


def hostile(x):
    return jax.ffi.ffi_call("no_such_target", jax.ShapeDtypeStruct((4,), jnp.float32))(x)


def python_callback(x):
    target = "xla_ffi_python_cpu_callback"
    return jax.ffi.ffi_call(target, jax.ShapeDtypeStruct((4,), jnp.float32))(x, index=np.uint64(9))


def forged(path, function):
    """A bundle whose manifest is whole and whose program calls something outside XLA."""
    from jax import export as jax_export

    export(lambda x: x * 2, None, "x:FP32[4] -> y", path, platforms=["cpu"])
    names = ("no_such_target", "xla_ffi_python_cpu_callback")
    checks = [jax_export.DisabledSafetyCheck.custom_call(name) for name in names]
    traced = jax_export.export(
        jax.jit(lambda weights, given: [function(given["x"])]),
        platforms=["cpu"], disabled_checks=checks,
    )({}, {"x": jax.ShapeDtypeStruct((4,), jnp.float32)})  # fmt: skip
    (path / "program").write_bytes(traced.serialize())
    reseal(path)
    return path


@pytest.mark.parametrize("function", [hostile, python_callback])
def test_a_custom_call_outside_the_list_is_refused_before_it_is_compiled(tmp_path, function):
    path = forged(tmp_path / "m" / "1", function)
    with pytest.raises(BundleError, match=r"found a custom call of '(no_such|xla_ffi)"):
        LoadedBundle.load(path)


def test_linear_algebra_of_xla_is_allowed_and_tried_in_a_child(tmp_path, monkeypatch):
    from ziggurat.serve.predict import trial

    path = export(
        lambda x: jnp.linalg.cholesky(x @ x.mT + jnp.eye(3)[None]), None, "x:FP32[b,3,3] -> y",
        tmp_path / "m" / "1", platforms=["cpu"],
    )  # fmt: skip
    tried = []
    monkeypatch.setattr(trial, "load", lambda *args: tried.append(args[0]))
    for isolated, expected in ((False, 0), (None, 1), (True, 1)):
        tried.clear()
        LoadedBundle.load(path, isolated=isolated)
        assert len(tried) == expected


@pytest.mark.slow
def test_a_crash_in_the_child_is_an_error_here(tmp_path, monkeypatch):
    """The operator vouches for a target that kills whoever calls it."""
    from ziggurat.serve.predict import trial

    path = forged(tmp_path / "m" / "1", python_callback)
    allowed = ["xla_ffi_python_*"]
    manifest, _ = verify(path)
    with pytest.raises(BundleError, match=r"the process that tried it ended with|found XlaRuntime"):
        trial.load(path, manifest, (), allowed)
    with pytest.raises(BundleError, match="custom call of 'xla_ffi_python_cpu_callback'"):
        trial.load(path, manifest, ())


def test_a_missing_an_added_and_a_linked_file_are_refused(copy):
    extra = copy / "weights" / "more"
    extra.write_bytes(b"")
    with pytest.raises(BundleError, match="weights/more: found a file that the manifest does not"):
        verify(copy)
    extra.unlink()
    extra.symlink_to(copy / "program")
    with pytest.raises(BundleError, match=r"weights/more: found not a plain file"):
        verify(copy)
    extra.unlink()
    (copy / "golden" / "case-1.safetensors").unlink()
    with pytest.raises(BundleError, match=r"golden/case-1.safetensors: found no such file"):
        verify(copy)
    (copy / "manifest.json").unlink()
    with pytest.raises(BundleError, match=r"manifest.json: No such file.*ziggurat bundle export"):
        verify(copy)


def reseal(path, **changes):
    """A manifest that its digests cover, with other content."""
    manifest, _ = manifests.read(path)
    files = manifests.entries(path)
    manifests.write(path, dataclasses.replace(manifest, files=files, **changes))


def test_a_program_that_computes_something_else_is_refused(copy, made):
    shutil.copy(made / "digits" / "2" / "weights" / "model.safetensors", copy / "weights")
    reseal(copy)
    with pytest.raises(BundleError, match="golden pair 0: output probabilities: found a differ"):
        LoadedBundle.load(copy)


def test_a_program_for_other_platforms_or_of_another_format_is_refused(copy):
    reseal(copy, platforms=("tpu",))
    with pytest.raises(BundleError, match="found a program for tpu; expected one for this mach"):
        LoadedBundle.load(copy)
    (copy / "program").write_bytes(b"nothing that jax reads")
    reseal(copy, platforms=("cpu",))
    with pytest.raises(BundleError, match=r"program: found .*; expected a program that jax"):
        LoadedBundle.load(copy)
    text = (copy / "manifest.json").read_text()
    tree = json.loads(text)
    del tree["digest"]
    (copy / "manifest.json").write_bytes(manifests._seal(tree | {"version": 3})[0])
    with pytest.raises(BundleError, match="version: found 3; expected 1 or 2"):
        LoadedBundle.load(copy)


def test_flax_modules_and_callable_pytrees_hold_their_own_weights(tmp_path):
    from flax import nnx

    class Head(nnx.Module):
        def __init__(self, rngs):
            self.layer = nnx.Linear(4, 2, rngs=rngs)
            self.drop = nnx.Dropout(0.5, rngs=rngs, deterministic=True)

        def __call__(self, x):
            return {"y": self.drop(self.layer(x))}

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Scale:
        by: jax.Array

        def __call__(self, x):
            return self.by * x

    x = np.ones((3, 4), np.float32)
    head = Head(nnx.Rngs(0))
    loaded = LoadedBundle.load(export(head, None, "x:FP32[b,4] -> y", tmp_path / "head"))
    np.testing.assert_allclose(loaded({"x": x})["y"], head(x)["y"], 1e-5, 1e-6)
    assert {"layer.kernel", "layer.bias"} <= {
        entry.name.removesuffix(".value") for entry in loaded.manifest.weights
    }
    path = export(Scale(jnp.float32(3)), None, "x:FP32[b,4] ->", tmp_path / "scale")
    assert LoadedBundle.load(path)({"x": x})["output"].tolist() == (3 * x).tolist()


def test_a_function_without_batch_and_with_wide_types(tmp_path):
    with jax.enable_x64(True):
        path = export(
            lambda a, n: (a.sum() + n.astype(a.dtype), a[::-1]),
            None,
            "a:FP64[k] n:INT64[] -> total back",
            tmp_path / "sum",
        )
    loaded = LoadedBundle.load(path)
    found = loaded({"a": np.arange(5.0), "n": np.int64(2**40)[...]})
    assert found["total"] == 10 + 2**40
    assert found["back"].dtype == np.float64
    assert found["back"].tolist() == [4, 3, 2, 1, 0]
    with pytest.raises(ServeError, match="input a: found shape"):
        loaded({"a": np.zeros((2, 2)), "n": np.int64(0)[...]})


X = "x:FP32[b,4] -> y"
TOKENS = "x:FP32[b,t] -> y"


@pytest.mark.parametrize(
    ("fn", "signature", "options", "said"),
    [
        (lambda x: (x, None), X, {}, "signature outputs: found 1: y; expected 2"),
        (lambda x: {"y": (x, x)}, X, {}, "output y: found tuple, not an array"),
        (lambda x: (None,), X, {}, "output y: found NoneType, not an array"),
        (lambda x: 1.0, X, {}, "the batch b as first dimension"),
        (jnp.linalg.eigvals, "x:FP32[b,4,4] -> y", {}, "primitive 'eig' not found"),
        (lambda x: jnp.concatenate([x, x], 1), TOKENS, {"sizes": {"t": (4,)}}, "a size of 2*t"),
        (lambda x: x.reshape(-1), X, {}, "expected the batch b as first dimension"),
        (lambda x: (x, x), X, {}, "signature outputs: found 1: y; expected 2"),
        (lambda x: {"z": x}, X, {}, "signature outputs: found y; expected what the function"),
        (lambda x: x, "x:FP32[b,4] -> y:FP32[b,5]", {}, "y:FP32[b,4]; expected y:FP32[b,5]"),
        (lambda x: x @ x, X, {}, "tracing the function: found TypeError"),
        (lambda x: x, "x:INT64[b] -> y", {}, "found INT64; expected INT32"),
        (lambda x: x, "x:BYTES[b] -> y", {}, "datatype: found 'BYTES', expected one of BOOL"),
        (lambda x: x, "x:FP32[4,b] -> y", {}, "the batch b as first dimension"),
        (lambda x: x, "x:FP32[b,4]", {}, "expected INPUTS -> OUTPUTS"),
        (lambda x: x, X, {"sizes": {"q": (4,)}}, "sizes of q"),
        (lambda x: x, X, {"golden": [{"x": np.ones((1, 4))}]}, "found type float64"),
        (lambda x: x, X, {"golden": [{"x": np.ones((1, 5), np.float32)}]}, "shape [1, 5]"),
        (lambda x: x, X, {"golden": [{}]}, "golden inputs"),
    ],
)
def test_what_cannot_be_served_is_refused_and_leaves_nothing(
    tmp_path, fn, signature, options, said
):
    with pytest.raises(ServeError) as caught:
        export(fn, None, signature, tmp_path / "m" / "1", **options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*1*"))


def test_a_bundle_is_not_written_over(bundle):
    with pytest.raises(ServeError, match="found it is there already"):
        export(lambda x: x, None, X, bundle)


def test_signature_texts():
    text = "a:FP32[b, t],c:BOOL[] -> y:FP32[b,2*t]"
    with pytest.raises(ServeError, match="the batch b as first dimension"):
        Signature.parse(text)
    parsed = Signature.parse(text.replace("b", "n").replace("2*t", "t"))
    assert parsed.symbols == ("n", "t")
    assert not parsed.batched


PROGRAM = """
import asyncio, sys, json
import numpy as np
from ziggurat.serve.predict import Predict
import ziggurat.serve.predict.grpc_service
with Predict(sys.argv[1]) as predict:
    queue = predict.repository.get("encoder").queue
    given = {"tokens": np.array([[3, 4, 5]], np.int32), "mask": np.array([[1, 1, 0]], np.int32)}
    (embedding,) = asyncio.run(queue.infer(given))
heads = ("flax", "optax", "orbax", "ziggurat.models", "ziggurat.nn", "ziggurat.train", "tests")
print(json.dumps([embedding.tolist(), [name for name in sys.modules if name.startswith(heads)]]))
"""


def test_another_process_serves_it_without_the_code_that_made_it(made):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(made)], capture_output=True, text=True, check=True
    )
    embedding, imported = json.loads(done.stdout.splitlines()[-1])
    tokens, mask = np.array([[3, 4, 5]]), np.array([[1, 1, 0]])
    wanted = encode(table(), tokens, mask, np)["embedding"]
    np.testing.assert_allclose(embedding, wanted, 1e-5, 1e-6)
    assert imported == []

"""Padding: a function that sees it is served without, one that does not keeps its table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ziggurat.serve.predict import LoadedBundle, Signature, Tensor, export, padding
from ziggurat.serve.predict import manifest as manifests
from ziggurat.serve.predict.signature import parse_sides

pytestmark = pytest.mark.usefixtures("users_promotion")
W = jnp.asarray(np.random.default_rng(3).standard_normal((6, 6)), jnp.float32)
E = jnp.asarray(np.random.default_rng(4).standard_normal((50, 6)), jnp.float32)
X, IDS = "x:FP32[b,t,6] -> y", "ids:INT32[b,t] -> y"
MASKED = "ids:INT32[b,t] attention_mask:INT32[b,t] -> y"
LENGTHS = "x:FP32[b,t,6] lengths:INT32[b] -> y"


def recurrent(x):
    start = jnp.zeros((x.shape[0], 6))
    return lax.scan(lambda h, v: (jnp.tanh(v + h @ W), None), start, x.swapaxes(0, 1))[0]


def attend(ids, mask):
    """Attention over the tokens that the mask names, in the two usual ways to say so."""
    x = E[ids % 50]
    scores = jnp.einsum("btd,bsd->bts", x, x) + (1.0 - mask[:, None, :]) * -1e9
    mixed = jax.nn.softmax(scores, -1) @ x
    weight = mask[..., None].astype(jnp.float32)
    return (mixed * weight).sum(1) / weight.sum(1)


def last(ids, mask):
    return E[ids % 50][jnp.arange(ids.shape[0]), mask.sum(1) - 1]


def within(x, lengths):
    inside = jnp.arange(x.shape[1])[None] < lengths[:, None]
    return jnp.where(inside[..., None], x, -jnp.inf).max(1)


BLIND = {
    "elementwise": (lambda x: jnp.tanh(x @ W), X),
    "sum": (lambda x: x.sum(1), X),
    "causal sums": (lambda x: jnp.cumsum(x, 1), X),
    "largest magnitude": (lambda x: jnp.abs(x).max(1), X),
    "masked mean": (
        lambda ids, attention_mask: (
            (E[ids % 50] * attention_mask[..., None]).sum(1) / attention_mask.sum(1, keepdims=True)
        ),
        MASKED,
    ),
    "masked attention": (attend, MASKED),
    "last token by mask": (last, MASKED),
    "largest within a length": (within, LENGTHS),
}
SEEN = {
    "maximum": (lambda x: jnp.max(x @ W, 1), X),
    "minimum": (lambda x: x.min(1), X),
    "mean": (lambda x: x.mean(1), X),
    "last step": (recurrent, X),
    "last place": (lambda x: x[:, -1], X),
    "reversed": (lambda x: jnp.cumsum(x[:, ::-1], 1), X),
    "sorted": (lambda x: jnp.sort(x, 1), X),
    "softmax": (lambda x: jax.nn.softmax(x, 1), X),
    "exponentials": (lambda x: jnp.log(jnp.exp(x / 1e30).sum(1)), X),
    "smallest id": (lambda ids: jnp.where(ids == 0, -1, ids).max(1) * (ids.min(1) > 5), IDS),
    "smallest large id": (lambda ids: ids.max(1) * (ids.min(1) > 500), IDS),
    "embedding of padding": (lambda ids: E[ids % 50].sum(1), IDS),
    "count of a size": (lambda ids: ids.sum(1) + ids.shape[1], IDS),
    "any zero": (lambda ids: (ids == 0).any(1), IDS),
    "threshold": (lambda x: x.max(1) * (x.min((1, 2)) > 5000)[:, None], X),
}  # fmt: skip


def made(tmp_path, function, signature):
    return export(
        function, None, signature, tmp_path / "m" / "1", sizes={"t": (4, 16)}, platforms=["cpu"]
    )


def reasons(function, text, golden=()):
    """What a trial of padding finds, without writing a bundle."""
    inputs, _ = parse_sides(text)
    named = {t.name: i for i, t in enumerate(inputs)}
    run = jax.jit(lambda given: function(*[given[name] for name in named]))
    sizes = {"b": 1, "t": 2}
    given = {
        t.name: jnp.ones([sizes.get(s, s) for s in t.shape], t.dtype) for t in inputs
    }  # fmt: skip
    shape = run(given).shape
    output = Tensor(
        name="y", datatype="FP32", shape=("b", *("t" if n == 2 else n for n in shape[1:]))
    )
    signature = Signature(inputs=inputs, outputs=(output,))
    return padding.seen(lambda x: [run(x)], signature, {"t": (4, 8)}, golden, True, 1e-4)


@pytest.mark.parametrize("name", BLIND)
def test_what_ignores_padding_is_padded(name):
    assert reasons(*BLIND[name]) == {}


@pytest.mark.parametrize("name", SEEN)
def test_what_sees_padding_is_caught(name):
    assert "padding it with zeros from" in reasons(*SEEN[name])["t"]


@pytest.mark.parametrize("name", ["maximum", "smallest id"])
def test_what_sees_padding_is_served_without(tmp_path, name):
    function, signature = SEEN[name]
    path = made(tmp_path, function, signature)
    manifest, _ = manifests.read(path)
    assert "padding it with zeros from" in manifest.exact["t"]
    bundle = LoadedBundle.load(path, batch_sizes=(1, 4))
    draw = np.random.default_rng(5)
    for size in (3, 5):
        if signature == X:
            given = {"x": -draw.uniform(1, 2, (2, size, 6)).astype(np.float32)}
        else:
            given = {"ids": draw.integers(501, 900, (2, size)).astype(np.int32)}
        wanted = np.asarray(function(*given.values()))
        np.testing.assert_allclose(bundle(given)["y"], wanted, 1e-4, 1e-5)


def test_golden_inputs_say_which_integers_come():
    """Flags that are not called masks may be anything, until golden inputs say what they are."""

    def chosen(flags):
        return jnp.where(flags >= 0, flags, flags.shape[1]).sum(1)

    text = "flags:INT32[b,t] -> y"
    assert "t" in reasons(chosen, text)
    assert reasons(chosen, text, [{"flags": np.array([[1, 0, 1]], np.int32)}]) == {}


def test_a_bundle_of_version_one_is_served_exactly(tmp_path):
    import dataclasses

    path = made(tmp_path, lambda x: x * 2, X)
    manifest, _ = manifests.read(path)
    manifests.write(path, dataclasses.replace(manifest, version=1))
    bundle = LoadedBundle.load(path, batch_sizes=(1, 4))
    assert set(bundle.manifest.served_exactly) == {"b", "t"}
    assert not bundle.manifest.joins_rows
    assert bundle({"x": np.ones((3, 5, 6), np.float32)})["y"].shape == (3, 5, 6)

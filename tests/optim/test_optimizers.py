"""Optimizers: first steps against plain NumPy, Optax and PyTorch; builds, jit, state, errors."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tests.optim.stacked_parameters import AXES, gradients, parameters

from ziggurat.core import config as core_config
from ziggurat.core.errors import ConfigError, ShapeError
from ziggurat.core.pytrees import named_leaves
from ziggurat.optim import (
    Adafactor,
    AdamW,
    Constant,
    Cosine,
    InverseSqrt,
    LinearDecay,
    Lion,
    Muon,
    OptimizerConfig,
    Sgd,
    WarmupStableDecay,
    build,
    build_schedule,
    global_norm,
)

NO_CLIP = {"clip_norm": float("inf")}
OPTIMIZERS = [
    AdamW(lr=0.1),
    AdamW(lr=0.1, nesterov=True, moment_dtype="bfloat16"),
    Lion(lr=0.01),
    Muon(lr=0.1),
    Muon(lr=0.1, adam_lr=0.01, update_rms=0.0, nesterov=False),
    Adafactor(lr=0.1, weight_decay=0.1, min_dim_to_factor=4),
    Adafactor(lr=0.1, momentum=0.9, scale_by_parameter=False),
    Sgd(lr=0.1),
    Sgd(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
]
SCHEDULES = [
    Constant(warmup_steps=1),
    LinearDecay(warmup_steps=1),
    Cosine(final_fraction=0.1),
    WarmupStableDecay(decay_fraction=0.5, decay_shape="sqrt"),
    InverseSqrt(warmup_steps=1),
]


def run(optimizer, params, grads):
    """Parameters after each step."""

    @jax.jit
    def step(params, state, gradient):
        updates, state = optimizer.transform.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    state, seen = jax.jit(optimizer.transform.init)(params), []
    for gradient in grads:
        params, state = step(params, state, gradient)
        seen.append(params)
    return seen


def walk(config, steps=3):
    """Parameters by name after each step, from the start on."""
    optimizer = build(config, total_steps=steps, axes=AXES)
    seen = [parameters(), *run(optimizer, parameters(), gradients(steps))]
    return optimizer, [
        {k: np.asarray(v, np.float64) for k, v in named_leaves(p).items()} for p in seen
    ]


def numpy_gradients(steps=3):
    return [
        {k: np.asarray(v, np.float64) for k, v in named_leaves(g).items()} for g in gradients(steps)
    ]


def assert_close(got, expected, rtol=1e-5):
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=rtol * np.abs(expected).max())


def test_adamw_against_numpy():
    config = AdamW(lr=0.1, weight_decay=0.2, schedule=LinearDecay(), clip_norm=1.0, eps=1e-3)
    optimizer, seen = walk(config)
    m = v = dict.fromkeys(seen[0], 0.0)
    params = seen[0]
    for t, grads in enumerate(numpy_gradients(), start=1):
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        rate = 0.1 * (1 - (t - 1) / 3)
        for row in optimizer.describe():
            g = grads[row.name] * min(1, 1.0 / norm)
            m = m | {row.name: 0.9 * m[row.name] + 0.1 * g}
            v = v | {row.name: 0.95 * v[row.name] + 0.05 * g * g}
            step = (m[row.name] / (1 - 0.9**t)) / (
                np.sqrt(v[row.name] / (1 - 0.95**t)) + 1e-3
            ) + 0.2 * row.decayed * params[row.name]
            params = params | {row.name: params[row.name] - rate * step}
            assert_close(seen[t][row.name], params[row.name])


def test_lion_against_numpy():
    config = Lion(lr=0.1, weight_decay=0.2, schedule=Constant(), **NO_CLIP)
    optimizer, seen = walk(config)
    m, params = dict.fromkeys(seen[0], 0.0), seen[0]
    for t, grads in enumerate(numpy_gradients(), start=1):
        for row in optimizer.describe():
            g = grads[row.name]
            step = np.sign(0.9 * m[row.name] + 0.1 * g) + 0.2 * row.decayed * params[row.name]
            m = m | {row.name: 0.99 * m[row.name] + 0.01 * g}
            params = params | {row.name: params[row.name] - 0.1 * step}
            assert_close(seen[t][row.name], params[row.name])


def newton_schulz(x, iterations=5):
    """Of one matrix, as published."""
    a, b, c = 3.4445, -4.7750, 2.0315
    transposed = x.shape[0] > x.shape[1]
    x = x.T if transposed else x
    x = x / (np.linalg.norm(x) + 1e-8)
    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if transposed else x


def as_matrices(name, x):
    """``[stack, inputs, outputs]``, by hand for each parameter that Muon takes."""
    if name == "blocks.attention.output.kernel":
        return x.reshape(3, 8, 8)
    if name == "blocks.moe.down.kernel":
        return x.reshape(6, 16, 8)
    return x


@pytest.mark.parametrize("update_rms", [0.2, 0.0])
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_against_numpy(update_rms, nesterov):
    config = Muon(
        lr=0.1,
        weight_decay=0.2,
        schedule=Constant(),
        adam_lr=0.05,
        update_rms=update_rms,
        nesterov=nesterov,
        **NO_CLIP,
    )
    optimizer, seen = walk(config)
    m, v = dict.fromkeys(seen[0], 0.0), dict.fromkeys(seen[0], 0.0)
    for t, grads in enumerate(numpy_gradients(), start=1):
        for row in optimizer.describe():
            name, g, before = row.name, grads[row.name], seen[t - 1][row.name]
            beta = 0.95 if row.group == "muon" else 0.9
            m[name] = beta * m[name] + (1 - beta) * g
            v[name] = 0.95 * v[name] + 0.05 * g * g
            if row.group == "adamw":
                rate = 0.05
                step = (m[name] / (1 - 0.9**t)) / (np.sqrt(v[name] / (1 - 0.95**t)) + 1e-8)
            else:
                rate, ahead = 0.1, m[name] / (1 - beta**t)
                if nesterov:
                    ahead = beta * m[name] / (1 - beta ** (t + 1)) + (1 - beta) * g / (1 - beta**t)
                stack = as_matrices(name, ahead)
                rows, columns = stack.shape[1:]
                scale = update_rms * np.sqrt(max(rows, columns)) or np.sqrt(max(1, columns / rows))
                step = scale * np.stack([newton_schulz(x) for x in stack]).reshape(g.shape)
            expected = before - rate * (step + 0.2 * row.decayed * before)
            assert_close(seen[t][name], expected, 2e-5)


def test_muon_update_has_orthogonal_directions_and_the_asked_rms():
    config = Muon(lr=1.0, weight_decay=0.0, schedule=Constant(), **NO_CLIP)
    axes, params = {"w": ("layers", "embed", "mlp")}, {"w": jnp.zeros((2, 64, 64))}
    grads = {"w": jax.random.normal(jax.random.key(0), (2, 64, 64))}
    after = np.asarray(run(build(config, total_steps=1, axes=axes), params, [grads])[0]["w"])
    singular = np.linalg.svd(after / (0.2 * np.sqrt(64)), compute_uv=False)
    assert np.median(singular) == pytest.approx(1.0, abs=0.25)
    assert singular.max() < 1.3
    assert np.sqrt((after**2).mean()) == pytest.approx(0.2, rel=0.25)


STACKS = {
    "blocks.mlp.up.kernel": 1,
    "blocks.moe.down.kernel": 2,
    "blocks.norm.scale": 1,
    "embed.table": 0,
}
"""Stacked dimensions of each parameter, by hand."""


@pytest.mark.parametrize("options", [{}, {"scale_by_parameter": False, "update_clip": 2.0}])
def test_adafactor_against_optax_layer_by_layer(options):
    """Stacked layers move as ``optax.adafactor`` moves each layer alone."""
    config = Adafactor(
        lr=0.1, weight_decay=0.2, schedule=Constant(), min_dim_to_factor=4, **options, **NO_CLIP
    )
    optimizer, seen = walk(config)
    decays = {row.name: row.decayed for row in optimizer.describe()}

    def direct(name):
        return optax.adafactor(
            0.1,
            min_dim_size_to_factor=4,
            multiply_by_parameter_scale=options.get("scale_by_parameter", True),
            clipping_threshold=options.get("update_clip", 1.0),
            weight_decay_rate=0.1 * 0.2 if decays[name] else None,
        )

    def by_layer(name, x):
        shape = seen[0][name].shape
        return jnp.asarray(x.reshape(-1, *shape[STACKS[name] :]), jnp.float32)

    @jax.jit
    def alone(params, grads):
        """Every layer's parameters after each step."""
        after = []
        states = {name: jax.vmap(direct(name).init)(x) for name, x in params.items()}
        for g in grads:
            for name, x in params.items():
                updates, states[name] = jax.vmap(direct(name).update)(g[name], states[name], x)
                params = params | {name: optax.apply_updates(x, updates)}
            after.append(params)
        return after

    grads = [{name: by_layer(name, g[name]) for name in STACKS} for g in numpy_gradients()]
    expected = alone({name: by_layer(name, seen[0][name]) for name in STACKS}, grads)
    for t in (1, 2, 3):
        for name in STACKS:
            assert_close(by_layer(name, seen[t][name]), np.asarray(expected[t - 1][name]))


def test_adafactor_momentum_is_a_mean_of_updates():
    plain = {"lr": 0.1, "schedule": Constant(), "scale_by_parameter": False, **NO_CLIP}
    _, without = walk(Adafactor(**plain))
    _, with_mean = walk(Adafactor(**plain, momentum=0.9))
    mean = 0.0
    for t in (1, 2, 3):
        name = "head.kernel"
        mean = 0.9 * mean + 0.1 * (without[t][name] - without[t - 1][name])
        assert_close(with_mean[t][name] - with_mean[t - 1][name], mean)


@pytest.mark.parametrize(
    "config",
    [
        Sgd(lr=0.1, schedule=Constant(), **NO_CLIP),
        Sgd(lr=0.1, schedule=Constant(), momentum=0.9, weight_decay=0.2, **NO_CLIP),
        Sgd(lr=0.1, schedule=Constant(), momentum=0.9, nesterov=True, **NO_CLIP),
    ],
)
def test_sgd_against_numpy(config):
    optimizer, seen = walk(config)
    buffer = dict.fromkeys(seen[0], 0.0)
    for t, grads in enumerate(numpy_gradients(), start=1):
        for row in optimizer.describe():
            before = seen[t - 1][row.name]
            g = grads[row.name] + config.weight_decay * row.decayed * before
            buffer[row.name] = config.momentum * buffer[row.name] + g
            step = g + config.momentum * buffer[row.name] if config.nesterov else buffer[row.name]
            assert_close(seen[t][row.name], before - 0.1 * step)


def torch_walk(make, steps=3):
    """The same walk in PyTorch; ``make(torch, decayed, rest)`` gives the optimizer."""
    torch = pytest.importorskip("torch")
    optimizer = build(AdamW(lr=1.0), total_steps=steps, axes=AXES)
    tensors = {
        name: torch.nn.Parameter(torch.tensor(np.asarray(x)))
        for name, x in named_leaves(parameters()).items()
    }
    decayed = [tensors[row.name] for row in optimizer.describe() if row.decayed]
    rest = [tensors[row.name] for row in optimizer.describe() if not row.decayed]
    oracle = make(torch, decayed, rest)
    seen = []
    for gradient in gradients(steps):
        for name, g in named_leaves(gradient).items():
            tensors[name].grad = torch.tensor(np.asarray(g))
        torch.nn.utils.clip_grad_norm_(list(tensors.values()), 1.0)
        oracle.step()
        seen.append({name: x.detach().numpy().copy() for name, x in tensors.items()})
    return seen


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["adamw", "sgd", "sgd nesterov"])
def test_against_torch(kind):
    common = {"lr": 0.1, "schedule": Constant(), "weight_decay": 0.2, "clip_norm": 1.0}
    if kind == "adamw":
        config = AdamW(**common, beta2=0.99)
        expected = torch_walk(
            lambda torch, decayed, rest: torch.optim.AdamW(
                [
                    {"params": decayed, "weight_decay": 0.2},
                    {"params": rest, "weight_decay": 0.0},
                ],
                lr=0.1,
                betas=(0.9, 0.99),
            )
        )
    else:
        nesterov = kind == "sgd nesterov"
        config = Sgd(**common, momentum=0.9, nesterov=nesterov)
        expected = torch_walk(
            lambda torch, decayed, rest: torch.optim.SGD(
                [
                    {"params": decayed, "weight_decay": 0.2},
                    {"params": rest, "weight_decay": 0.0},
                ],
                lr=0.1,
                momentum=0.9,
                nesterov=nesterov,
            )
        )
    _, seen = walk(config)
    for got, want in zip(seen[1:], expected, strict=True):
        for name in want:
            assert_close(got[name], want[name], 2e-5)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.kind)
@pytest.mark.parametrize("config", OPTIMIZERS, ids=lambda c: c.kind)
def test_every_optimizer_builds_with_every_schedule(config, schedule):
    optimizer = build(dataclasses.replace(config, schedule=schedule), total_steps=4, axes=AXES)
    assert optimizer.schedule(1) == build_schedule(schedule, 4, config.lr)(1)


@pytest.mark.parametrize("config", OPTIMIZERS, ids=lambda c: c.kind)
def test_jitted_and_donated_steps_move_every_parameter(config):
    optimizer = build(config, total_steps=4, axes=AXES)

    def step(params, state, grads):
        norm = global_norm(grads)
        updates, state = optimizer.transform.update(grads, state, params, grad_norm=norm)
        return optax.apply_updates(params, updates), state

    fast = jax.jit(step, donate_argnums=(0, 1))
    params = parameters()
    state = jax.jit(optimizer.transform.init)(params)
    for grads in gradients(2):
        given = params
        params, state = fast(params, state, grads)
        assert all(x.is_deleted() for x in jax.tree.leaves(given)), "donated"
    for name, x in named_leaves(params).items():
        assert np.isfinite(x).all(), name
        assert not np.array_equal(x, named_leaves(parameters())[name]), name


@pytest.mark.parametrize("config", OPTIMIZERS, ids=lambda c: c.kind)
def test_toml_round_trip(config):
    @core_config.node
    class Run:
        optimizer: OptimizerConfig

    again = core_config.parse(Run, core_config.to_toml(Run(optimizer=config)))
    assert again.value.optimizer == config


def test_no_clipping_from_a_run_file():
    @core_config.node
    class Run:
        optimizer: OptimizerConfig

    text = "[optimizer]\nkind = 'sgd'\nlr = 1\nclip_norm = inf"
    optimizer = build(
        core_config.parse(Run, text).value.optimizer, total_steps=1, axes={"w": ("embed",)}
    )
    after = run(optimizer, {"w": jnp.zeros(2)}, [{"w": jnp.array([300.0, 400.0])}])
    np.testing.assert_allclose(after[0]["w"], [-300, -400])


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("kind='adam'\nlr=1.0", "did you mean adamw"),
        ("kind='adamw'", "optimizer.lr: missing"),
        ("kind='adamw'\nlr=0.0", "optimizer.lr: found 0.0, expected a positive number"),
        ("kind='adamw'\nlr=1.0\nbeta2=1.0", "optimizer.beta2: found 1.0"),
        ("kind='adamw'\nlr=1.0\neps=0.0", "optimizer.eps: found 0.0"),
        ("kind='adamw'\nlr=1.0\nweight_decay=-1.0", "optimizer.weight_decay: found -1.0"),
        ("kind='adamw'\nlr=1.0\nclip_norm=0.0", "optimizer.clip_norm: found 0.0"),
        ("kind='adamw'\nlr=1.0\nmoment_dtype='float16'", "optimizer.moment_dtype"),
        ("kind='adamw'\nlr=1.0\nbeta_1=0.5", "did you mean beta1"),
        ("kind='lion'\nlr=1.0\nbeta1=-0.1", "optimizer.beta1: found -0.1"),
        ("kind='muon'\nlr=1.0\nadam_lr=0.0", "optimizer.adam_lr: found 0.0"),
        ("kind='muon'\nlr=1.0\niterations=0", "optimizer.iterations: found 0"),
        ("kind='muon'\nlr=1.0\nupdate_rms=-1.0", "optimizer.update_rms: found -1.0"),
        ("kind='muon'\nlr=1.0\nmomentum=1.0", "optimizer.momentum: found 1.0"),
        ("kind='adafactor'\nlr=1.0\nupdate_clip=0.5", "optimizer.update_clip: found 0.5"),
        ("kind='adafactor'\nlr=1.0\ndecay_exponent=0.0", "optimizer.decay_exponent: found 0.0"),
        ("kind='adafactor'\nlr=1.0\nmin_dim_to_factor=0", "optimizer.min_dim_to_factor: found 0"),
        ("kind='sgd'\nlr=1.0\nnesterov=true", "nesterov: found True, expected false without mom"),
    ],
)
def test_errors_in_a_run_file(text, part):
    @core_config.node
    class Run:
        optimizer: OptimizerConfig

    with pytest.raises(ConfigError, match=part):
        core_config.parse(Run, f"[optimizer]\n{text}")


def test_parameters_that_do_not_fit_the_axes():
    optimizer = build(AdamW(lr=1.0), total_steps=1, axes={"kernel": ("embed", "mlp")})
    with pytest.raises(ShapeError, match="kernel: found shape \\[3\\]; expected one dimension"):
        optimizer.transform.init({"kernel": jnp.ones(3)})
    with pytest.raises(ShapeError, match="bias: found it in the parameters but not in the axes"):
        optimizer.transform.init({"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)})
    with pytest.raises(ShapeError, match="kernel: found it in the axes but not in the parameters"):
        optimizer.transform.init({})


def test_schedule_longer_than_the_run_is_refused():
    config = AdamW(lr=1.0, schedule=Cosine(warmup_steps=9))
    with pytest.raises(ConfigError, match="9 warm-up"):
        build(config, total_steps=8, axes={"w": ("embed",)})


def test_reported_schedule_is_the_one_applied():
    config = Sgd(lr=0.5, schedule=LinearDecay(warmup_steps=2), **NO_CLIP)
    optimizer = build(config, total_steps=6, axes={"w": ("embed",)})
    ones = {"w": jnp.ones(1)}
    seen = [0.0, *(float(p["w"][0]) for p in run(optimizer, {"w": jnp.zeros(1)}, [ones] * 6))]
    np.testing.assert_allclose(-np.diff(seen), [optimizer.schedule(i) for i in range(6)], rtol=1e-5)
    assert optimizer.schedule(1) == 0.5


def test_config_imports_no_jax():
    code = "import sys, ziggurat.optim.config; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""Candidates that divide, their order, and the analytic figures behind it."""

import dataclasses

import jax
import pytest
from tests.train.runs import run

from ziggurat.core import config
from ziggurat.core.errors import ConfigError, PlanError
from ziggurat.core.pytrees import size_bytes
from ziggurat.plan import Topology, prepare
from ziggurat.plan.analytic import argument_bytes
from ziggurat.plan.estimate import EFFICIENCY, efficiency, estimate
from ziggurat.plan.search import Candidate, candidates, nearest, rank
from ziggurat.plan.work import Operation
from ziggurat.train.ahead_of_time import subject

OVERRIDES = ("model.d_model=256", "model.d_ff=512", "data.sequence_length=256")
TOPOLOGY = Topology.parse("v5e:2x2")


@pytest.fixture(scope="module")
def prepared():
    pytest.importorskip("libtpu")
    devices = TOPOLOGY.devices()

    def one(*overrides):
        return prepare(subject(run(*OVERRIDES, *overrides), devices), TOPOLOGY)

    return {
        "fsdp": one("mesh.fsdp=4"),
        "tensor": one("mesh.fsdp=2", "mesh.tensor=2"),
        "remat": one("mesh.fsdp=4", "train.remat='full'"),
        "halves": one("mesh.fsdp=4", "train.accumulate=2"),
    }


def test_candidates_multiply_and_divide():
    found = candidates(devices_in_slice=8, slices=2, divides=lambda c: True, remat=("none", "full"))
    assert len(found) == 20  # ten splits of eight over three axes, two policies
    for candidate in found:
        product = 1
        for size in candidate.mesh.values():
            product *= size
        assert product == 8
        assert "mesh.dcn.data=2" in candidate.overrides
    few = candidates(devices_in_slice=8, slices=1, divides=lambda c: c.mesh.get("tensor", 1) <= 2)
    assert {c.mesh.get("tensor", 1) for c in few} == {1, 2}


def test_overrides_give_the_mesh():
    candidate = Candidate({"fsdp": 2, "tensor": 2}, "dots")
    made = config.parse(type(run()), config.to_toml(run("mesh.fsdp=8")), candidate.overrides).value
    assert (made.mesh.fsdp, made.mesh.tensor, made.mesh.data, made.train.remat) == (2, 2, 1, "dots")


def test_nearest_by_ratio():
    known = [Candidate({"fsdp": 64}, "full"), Candidate({"fsdp": 16, "tensor": 4}, "full")]
    assert nearest({"fsdp": 48}, known) == known[0]
    assert nearest({"fsdp": 8, "tensor": 8}, known) == known[1]
    assert nearest({"fsdp": 8}, []) is None


def test_rank_puts_what_fits_and_is_fast_first(prepared):
    plans = {name: entry.plan for name, entry in prepared.items()}
    slow = dataclasses.replace(
        plans["fsdp"], estimate=dataclasses.replace(plans["fsdp"].estimate, step_s=9.0)
    )
    large = dataclasses.replace(plans["fsdp"], memory={"peak_estimate_bytes": 1e12})
    larger = dataclasses.replace(plans["fsdp"], memory={"peak_estimate_bytes": 2e12})
    given = [("larger", larger), ("slow", slow), ("large", large), ("fsdp", plans["fsdp"])]
    assert [name for name, _ in rank(given)] == ["fsdp", "slow", "large", "larger"]


def test_recomputation_costs_time_and_saves_memory(prepared):
    plain, full = prepared["fsdp"].plan, prepared["remat"].plan
    assert full.estimate.by_kind_s["matmul"] > plain.estimate.by_kind_s["matmul"]
    assert full.estimate.hardware_flops > plain.estimate.hardware_flops
    assert full.estimate.model_flops == plain.estimate.model_flops
    kept = "kept_for_backward_bytes"
    assert full.memory[kept] < plain.memory[kept]


def test_the_work_of_a_step_is_its_arithmetic(prepared):
    """6 FLOPs per parameter in a product and token, without remat; attention apart."""
    seen = prepared["fsdp"]
    n = 2 * (256 * 256 * 2 + 2 * 256 * 128 + 3 * 256 * 512) + 288 * 256
    products = sum(o.flops * o.count for o in seen.operations if o.kind == "matmul")
    assert products == 6 * n * seen.subject.tokens


def test_argument_bytes_are_arithmetic(prepared):
    """Parameters and two moments in float32 over four devices, five words of a token, counters."""
    seen = prepared["fsdp"].subject
    state, batch, _ = seen.arguments
    words = size_bytes(state.params) + size_bytes(state.optimizer)
    found = argument_bytes(jax.tree.leaves(seen.arguments))
    scalars = 4 * 3 + sum(4 for x in jax.tree.leaves(state.optimizer) if x.ndim == 0)
    whole = words - sum(4 for x in jax.tree.leaves(state.optimizer) if x.ndim == 0)
    assert found == whole / 4 + size_bytes(batch) / 4 + scalars


def test_collectives_follow_the_sharding(prepared):
    """Every weight gathered forwards and backwards in bfloat16 and its gradient scattered."""
    fsdp, halves = prepared["fsdp"], prepared["halves"]
    sizes = sum(leaf.size for leaf in fsdp.subject.trained.values()) * 2
    assert fsdp.plan.estimate.ici_s > 0
    rate = fsdp.fabric.along(("fsdp",)).ici_bytes_per_s
    assert fsdp.plan.estimate.ici_s == pytest.approx(3 * sizes * 3 / 4 / rate)
    assert halves.plan.estimate.ici_s == pytest.approx(2 * fsdp.plan.estimate.ici_s)


def test_tensor_parallel_collectives_are_exposed(prepared):
    estimate = prepared["tensor"].plan.estimate
    assert estimate.exposed_s > prepared["fsdp"].plan.estimate.exposed_s
    assert estimate.step_s == estimate.compute_s + estimate.exposed_s


def test_figures_are_consistent(prepared):
    figures = prepared["fsdp"].plan.estimate
    assert figures.tokens_per_s == 2048 / figures.step_s
    assert figures.mfu == pytest.approx(figures.model_flops / figures.step_s / (4 * 197e12))
    assert figures.cost(2.0) == pytest.approx(1e9 / figures.tokens_per_s / 3600 * 4 * 2.0)
    assert any("not fitted" in line for line in _assumed("tpu7x:2x2x1"))
    assert efficiency("tpu7x") == min(EFFICIENCY.values())


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_an_mfu_above_one_is_an_error_and_never_a_figure(prepared, share):
    """Work that was not counted, such as the body of a loop, would make a step look fast."""
    seen = prepared["fsdp"]
    counted = [dataclasses.replace(o, flops=share * o.flops, bytes=0.0) for o in seen.operations]

    def figures():
        return estimate(
            TOPOLOGY,
            counted,
            [],
            tokens=seen.subject.tokens,
            model_flops_per_token=seen.subject.model_flops_per_token,
            matmul_flops_per_token=seen.subject.matmul_flops_per_token,
            compiled=False,
        )

    if share == 1.0:
        assert 0.5 < figures().mfu <= 1.0
    else:
        with pytest.raises(PlanError, match=r"an MFU of .*%: .* FLOPs counted") as caught:
            figures()
        assert "\n" not in str(caught.value)


def test_attention_that_a_kernel_skips_does_not_make_an_mfu_above_one(prepared):
    """PaLM's count has every key of a causal sequence; a kernel computes half of them."""
    seen = prepared["fsdp"].subject
    needed = float(seen.matmul_flops_per_token)
    work = [Operation("matmul", "dot", "bfloat16", needed * seen.tokens, 0.0, 1.0)]
    work += [Operation("attention", "splash", "bfloat16", 5 * needed * seen.tokens, 0.0, 1.0)]
    given = {"tokens": seen.tokens, "matmul_flops_per_token": needed, "compiled": False}
    found = estimate(TOPOLOGY, work, [], model_flops_per_token=11 * needed, **given)
    assert found.mfu == pytest.approx(efficiency("v5e"))


def _assumed(name):
    from ziggurat.plan.estimate import assumptions

    return assumptions(Topology.parse(name), compiled=False)


def test_a_model_by_path_is_refused(tmp_path):
    made = config.parse(
        type(run()), config.to_toml(run()), [f"model={{kind='pretrained', path='{tmp_path}'}}"]
    ).value
    with pytest.raises(ConfigError, match=r"model: found a path; expected dimensions"):
        subject(made, jax.devices()[:1])

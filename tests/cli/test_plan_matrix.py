"""Every family, objective and adapter has an analytic plan: arithmetic bounds hold for each."""

import functools
from pathlib import Path

import pytest

from ziggurat.cli.main import main
from ziggurat.core import config
from ziggurat.core.errors import ConfigError
from ziggurat.models import LanguageModel
from ziggurat.plan import Topology, prepare
from ziggurat.train.ahead_of_time import subject
from ziggurat.train.config import RunConfig
from ziggurat.train.registries import OBJECTIVES as REGISTERED

pytest.importorskip("libtpu")
TOPOLOGY = Topology.parse("v5e:2x2")
DEVICES = TOPOLOGY.devices()
SIZES = "vocab_size = 512, d_model = 128, n_layers = 2, n_heads = 4"
GATED = f"{SIZES}, n_kv_heads = 4, head_dim = 32, d_ff = 256"
HYBRID = (
    f"{GATED}, rotary_dim = 16, delta_key_heads = 4, delta_value_heads = 4, delta_key_dim = 16,"
    ' delta_value_dim = 16, pattern = ["linear", "full"]'
)
FAMILIES = {
    "llama": GATED,
    "qwen2": GATED,
    "qwen3": GATED,
    "gemma2": f"{GATED}, window = 64",
    "gemma3": f"{GATED}, window = 64",
    "arcee": GATED,
    "cohere": GATED,
    "cohere2": f"{GATED}, window = 64",
    "exaone4": GATED,
    "falcon": f"{SIZES}, d_ff = 256, n_kv_heads = 4",
    "gemma": GATED,
    "glm": GATED,
    "glm4": GATED,
    "gpt_neox": f"{SIZES}, d_ff = 256",
    "granite": GATED,
    "helium": GATED,
    "hunyuan_dense": GATED,
    "ministral": GATED,
    "ministral3": GATED,
    "nemotron": GATED,
    "olmo2": GATED,
    "olmo3": f"{GATED}, window = 64",
    "opt": f"{SIZES}, max_sequence_length = 128",
    "phi": f"{SIZES}, d_ff = 256",
    "phi3": GATED,
    "seed_oss": GATED,
    "smollm3": GATED,
    "stablelm": GATED,
    "starcoder2": GATED,
    "gpt2": f"{SIZES}, max_sequence_length = 128",
    "mixtral": f"{GATED}, n_experts = 4",
    "qwen3_moe": f"{SIZES}, n_kv_heads = 4, head_dim = 32, d_ff = 256, n_experts = 4,"
    " experts_per_token = 2",
    "qwen2_moe": f"{GATED}, n_experts = 4, experts_per_token = 2, d_ff_shared = 128",
    "qwen3_next": f"{HYBRID}, n_experts = 4, experts_per_token = 2, d_ff_shared = 128",
    "qwen3_5": HYBRID,
    "glm4_moe": f"{GATED}, n_experts = 4, experts_per_token = 2",
    "gpt_oss": f"{GATED}, n_experts = 4, experts_per_token = 2",
    "deepseek_v3": f"{SIZES}, latent = 32, plain_dim = 16, rotary_dim = 16, value_dim = 32,"
    " d_ff = 256, d_ff_expert = 128, n_experts = 4, experts_per_token = 2",
}
DATA = 'sources = [{ kind = "text", path = "." }], sequence_length = 128, batch_size = 8'
IMAGES = 'kind = "images", source = { kind = "digits" }, batch_size = 8'
DIT = 'kind = "dit", image_size = 8, channels = 1, classes = 10, d_model = 128, n_layers = 2, n_heads = 4'  # noqa: E501
PROBLEMS = (
    'kind = "problems", batch_size = 8, sequence_length = 128,'
    ' task = { kind = "prompts", path = "p.jsonl", reward = "number", held_out = 2 }'
)
MESHES = {
    "fsdp": "fsdp = 4",
    "tensor": "fsdp = 2, tensor = 2",
    "context": "fsdp = 2, context = 2",
    "expert": "fsdp = 2, expert = 2",
    "data": "data = 4, fsdp = 1",
}


def run_of(model: str, data: str = DATA, mesh: str = "fsdp = 4", *more: str) -> RunConfig:
    text = (
        f'name = "m"\nmodel = {{ {model} }}\ndata = {{ {data} }}\nmesh = {{ {mesh} }}\n'
        'optimizer = { kind = "adamw", lr = 1e-3 }\n'
    )
    if not any("train" in line for line in more):
        text += "train = { steps = 10 }\n"
    return config.parse(RunConfig, text + "\n".join(more), []).value


def plan_of(run: RunConfig):
    return plan_of_text(config.to_toml(run))


@functools.cache
def plan_of_text(text: str):
    """A plan, made once of each run file."""
    run = config.parse(RunConfig, text, []).value
    found = prepare(subject(run, DEVICES), TOPOLOGY).plan
    figures = found.estimate
    assert 0 < figures.mfu <= 1
    assert figures.hardware_flops > 0
    assert figures.step_s > 0
    memory = found.memory
    assert memory["peak_estimate_bytes"] > memory["argument_bytes"] > 0
    assert memory["working_bytes"] > 0
    return found


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family(kind):
    run = run_of(f'kind = "{kind}", {FAMILIES[kind]}')
    found, model = plan_of(run), LanguageModel.build(run.model)
    figures = found.estimate
    # what the program multiplies is what the model's own count says, and a router or two more;
    # blocks of the experts' rows may be padded
    matmul = figures.hardware_flops / figures.tokens / 6
    assert matmul == pytest.approx(model.matmul_parameter_count, rel=0.35), kind
    assert matmul >= model.matmul_parameter_count


@pytest.mark.parametrize(
    ("kind", "mesh"),
    [
        ("llama", "tensor"),
        ("llama", "context"),
        ("llama", "data"),
        ("mixtral", "tensor"),
        ("mixtral", "expert"),
        ("deepseek_v3", "expert"),
    ],
)
def test_every_mesh_axis(kind, mesh):
    plan_of(run_of(f'kind = "{kind}", {FAMILIES[kind]}', DATA, MESHES[mesh]))


OBJECTIVES = {
    "lm": (f'kind = "llama", {GATED}', DATA),
    "sft": (f'kind = "llama", {GATED}', DATA),
    "dpo": (f'kind = "llama", {GATED}', DATA),
    "kto": (f'kind = "llama", {GATED}', DATA),
    "reward": (f'kind = "llama", {GATED}', DATA),
    "grpo": (f'kind = "llama", {GATED}', PROBLEMS),
    "flow": (DIT, IMAGES),
    "ddpm": (DIT, IMAGES),
}
LORA = "adapter = { kind = 'lora', rank = 8 }"


def test_the_matrix_names_every_objective():
    assert set(OBJECTIVES) | {"distill"} == set(REGISTERED)


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_every_objective(kind):
    model, data = OBJECTIVES[kind]
    more = "group = 4, sampling = { max_tokens = 8 }, " if kind == "grpo" else ""
    plan_of(run_of(model, data, "fsdp = 4", f'objective = {{ {more}kind = "{kind}" }}'))


@pytest.mark.parametrize("kind", ["sft", "dpo", "kto", "reward"])
def test_every_objective_with_adapters(kind):
    model, data = OBJECTIVES[kind]
    objective = f'objective = {{ kind = "{kind}" }}'
    full = plan_of(run_of(model, data, "fsdp = 4", objective))
    thin = plan_of(run_of(model, data, "fsdp = 4", objective, LORA))
    assert thin.memory["gradient_bytes"] < 0.5 * full.memory["gradient_bytes"]
    assert thin.estimate.hardware_flops < full.estimate.hardware_flops


def test_adapters_beside_experts():
    objective = 'objective = { kind = "sft" }'
    plan_of(run_of(f'kind = "mixtral", {FAMILIES["mixtral"]}', DATA, "fsdp = 4", objective, LORA))


@pytest.mark.parametrize(("remat", "accumulate"), [("none", 2), ("dots", 1), ("full", 2)])
def test_every_remat_policy(remat, accumulate):
    train = f'train = {{ steps = 10, remat = "{remat}", accumulate = {accumulate} }}'
    plan_of(run_of(f'kind = "llama", {GATED}', DATA, "fsdp = 4", train))


def test_gathered_tokens_and_written_scores_count():
    """Experts that are cut run on the tokens of all their devices, and rows that are cut over
    ``context`` have no kernel that keeps scores on the chip: no plan may say that this fits."""
    mixtral = f'kind = "mixtral", {FAMILIES["mixtral"]}'
    whole, cut = (
        plan_of(run_of(mixtral, DATA, mesh)) for mesh in ("fsdp = 4", "expert = 4, fsdp = 1")
    )
    assert cut.memory["working_bytes"] > 2 * whole.memory["working_bytes"]
    data = DATA.replace("sequence_length = 128", "sequence_length = 2048")
    llama = f'kind = "llama", {GATED}, max_sequence_length = 2048'
    whole, cut = (plan_of(run_of(llama, data, MESHES[mesh])) for mesh in ("fsdp", "context"))
    scores = 8 * 4 * 2048 * 2048 * 4 / 4
    assert cut.memory["working_bytes"] > 1.5 * scores
    assert whole.memory["working_bytes"] < scores


RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))
PODS = {"llama3-8b-v5p": "v5p:4x4x4"}
LARGE = "llama3-405b-v5p"
"""Its 8192 devices take minutes; the loading of recipes has a test of its own."""


@pytest.mark.parametrize(
    "recipe", [path for path in RECIPES if path.stem != LARGE], ids=lambda path: path.stem
)
def test_every_recipe(recipe, capsys):
    """A plan, or one line that says what would make one."""
    topology = PODS.get(recipe.stem, "v5e:2x2")
    code = main(["plan", str(recipe), "--topology", topology, "--analytic"])
    shown = capsys.readouterr()
    if code == 2:
        assert shown.err.count("error: ") == 1
        assert "Traceback" not in shown.err
    else:
        assert "MFU" in shown.out
    # those that start from a run's weights cannot be planned without them
    assert (code == 2) == ('kind = "pretrained"' in recipe.read_text())


@pytest.mark.parametrize("topology", ["v5p:20x4x4", "v5p:4x4x28"])
def test_an_odd_pod_has_a_plan(topology, tmp_path, capsys):
    file = tmp_path / "odd.toml"
    file.write_text(config.to_toml(run_of(f'kind = "llama", {GATED}', DATA, "fsdp = -1")))
    pod = Topology.parse(topology).chips
    sizes = [f"--model.d-model={pod}", f"--data.batch-size={pod}"]
    assert main(["plan", str(file), "--topology", topology, "--analytic", *sizes]) == 0
    assert f"fsdp={pod}" in capsys.readouterr().out


def test_a_teacher_by_path_is_one_line():
    objective = 'objective = { kind = "distill", teacher = "t" }'
    run = run_of(f'kind = "llama", {GATED}', DATA, "fsdp = 4", objective)
    with pytest.raises(ConfigError, match="a teacher, known by its path only") as caught:
        plan_of(run)
    assert "\n" not in str(caught.value)

"""Write docs/glossary.md from the dimension table and the terms below:
``python scripts/write_glossary.py``."""

from pathlib import Path

from ziggurat.core.dimensions import DIMENSIONS

PATH = Path(__file__).parents[1] / "docs" / "glossary.md"

TERMS = {
    "adapter": "Low-rank matrices (LoRA) trained beside frozen weights.",
    "base": "The model that an adapter was trained on.",
    "block (KV cache)": "A fixed number of tokens' keys and values, the unit of allocation.",
    "block (layer)": "One decoder layer: attention and MLP with their norms.",
    "block table": "The KV cache blocks of a sequence, in order.",
    "bundle": "A directory with a compiled-ahead JAX function, its weights and recorded outputs; "
    "serves without the code that made it.",
    "chat template": "A Jinja program that turns messages into a prompt.",
    "collective": "Communication of devices: all-gather, all-reduce, reduce-scatter, all-to-all.",
    "constraint": "A grammar, JSON schema, regular expression or choice that an answer must match.",
    "controller": "The process of `ziggurat cluster run` that starts and watches the hosts.",
    "DCN": "The data-centre network between TPU slices.",
    "document": "One text or conversation of a source, before packing.",
    "family": "The models that share a config class and weight names, such as Llama.",
    "goodput": "Share of wall time spent in steps that count.",
    "host": "One machine, or one process that stands for a machine.",
    "ICI": "The links between the chips of one TPU slice.",
    "keeper": "A process that holds snapshots of a trainer's state in memory and outlives it.",
    "layout": "A mesh with the rules that shard arrays over it.",
    "ledger": "The account of where wall time went, summing to the whole.",
    "loss mask": "Which tokens of a row the loss counts.",
    "manifest": "The list of a checkpoint's or bundle's files with their sizes and digests.",
    "mesh": "A grid of devices with named axes.",
    "MFU": "Model FLOPs utilisation: the model's FLOPs over the chips' peak.",
    "micro-batch": "Part of the global batch; gradients are added over `train.accumulate` of them.",
    "mixture": "Shares of the rows that each data source gets, per step.",
    "objective": "What a run learns: `lm`, `sft`, `dpo`, `grpo` and so on.",
    "packing": "Putting several documents into one row.",
    "plan": "Memory, time and cost of a run on hardware that is not here.",
    "prefill": "Computing a prompt's keys and values, before decoding.",
    "prefix cache": "KV cache blocks of finished prompts, reused by prompts that begin alike.",
    "provenance": "Where each value of a run file came from.",
    "recipe": "A run file that comes with the package; quantization recipes are rules.",
    "remat": "Recomputing activations in the backward pass to save memory.",
    "repository": "A directory of bundles: `MODEL/VERSION/`.",
    "request": "One call of a client; has one or more sequences (`n`).",
    "rollout": "Completions sampled from the policy during RL.",
    "row": "One sequence of the batch, `data.sequence_length` tokens.",
    "run": "A training with its directory: checkpoints, metrics, report.",
    "run file": "The config of a run, in TOML.",
    "sequence (serving)": "Tokens of one answer being generated, with its block table.",
    "sink": "Where metrics go: JSON lines, TensorBoard.",
    "slice": "TPU chips joined by ICI.",
    "step": "One optimizer update; also the checkpoint saved after it.",
    "tier": "A place that checkpoints are saved to: memory, disk, persistent store.",
    "topology": "Generation and shape of a slice, such as `v5p:4x4x4`.",
    "world": "The hosts that train together in one `jax.distributed` mesh.",
}

HEAD = """\
# Glossary

<!-- Generated from src/ziggurat/core/dimensions.py by `python scripts/write_glossary.py`. -->

## Terms

| term | meaning |
| --- | --- |
"""

DIMENSIONS_HEAD = """
## Dimensions

One letter and one logical axis name per dimension, everywhere: the letter in shape annotations
(`Float[Array, "b t d"]`) and einsum strings, the axis name on parameters and in the sharding rules
of `ziggurat.mesh`.

| letter | logical axis | meaning |
| --- | --- | --- |
"""


def render() -> str:
    """The page's text."""
    terms = (f"| {term} | {TERMS[term]} |\n" for term in sorted(TERMS, key=str.lower))
    rows = (f"| `{entry.letter}` | `{entry.axis}` | {entry.meaning} |\n" for entry in DIMENSIONS)
    return HEAD + "".join(terms) + DIMENSIONS_HEAD + "".join(rows)


if __name__ == "__main__":
    PATH.write_text(render(), encoding="utf-8")

"""``ziggurat import``: read a published model, or another program's checkpoint, into ours."""

from pathlib import Path
from typing import Any, Literal

from ziggurat.cli import console
from ziggurat.core import hub
from ziggurat.core.errors import ConfigError, ModelError

EXAMPLE = """ziggurat import hf DOWNLOADS/SmolLM2-135M --output models/smollm2
  ziggurat import weights ckpt.pt --config DOWNLOADS/SmolLM2-135M --output models/tuned"""


def import_(
    kind: Literal["hf", "gguf", "diffusers", "weights"],
    source: Path,
    /,
    output: Path,
    verify: Literal["auto", "always", "never"] = "auto",
    config: Path | None = None,
    prefix_strip: str | None = None,
    item: str | None = None,
) -> int:
    """Read a Hugging Face directory, a GGUF file, a pipeline of diffusers, or the weights of
    another program's checkpoint into a checkpoint that every command takes. No pickle is executed.

    Args:
        kind: hf (config.json and safetensors), gguf (one file, dequantised), diffusers
            (model_index.json, or a DiT's config.json) or weights (a .pt file, a DCP or Orbax
            directory, safetensors, with names of Hugging Face or TorchTitan).
        source: the directory or file, or a repository of the Hugging Face hub: owner/name,
            owner/name@revision, owner/name/FILE.gguf.
        output: new directory for the checkpoint.
        verify: hf and gguf: compare logits with transformers and keep the result beside the
            weights; auto: if transformers is installed and the weights are floats.
        config: weights: the directory of config.json and tokenizer.json, or that config.json.
        prefix_strip: weights: what stands before each tensor's name; default: found out.
        item: weights: which tree of an Orbax checkpoint or of a step, such as params.
    """
    source = hub.local(source)
    _check_kind(kind, source)
    options = {"config": config, "prefix-strip": prefix_strip, "item": item}
    if kind == "weights":
        return _import_weights(source, output, verify, config, prefix_strip, item)
    for option, value in options.items():
        if value is not None:
            raise ConfigError(
                f"import {kind} --{option}", found=value, expected="this option for weights only"
            )
    if kind == "diffusers":
        return _import_diffusers(source, output, verify)
    from ziggurat.models import pretrained, pretrained_encoder, proof
    from ziggurat.models.quantized import formats_of

    out = console.output()
    if kind == "hf" and pretrained_encoder.is_encoder(source):
        return _import_encoder(source, output, verify)
    with console.progress("reading") as told:
        model = pretrained.load(source, told=told)
    out.print(f"{model.model.config.kind}: {model.model.parameter_count:,} parameters")
    records: dict[str, Any] = {"source": hub.name_of(source)}
    quantised = formats_of(model.params)
    if quantised:
        out.print(f"{len(quantised)} quantised weights, kept so")
    if verify == "always" or (verify == "auto" and proof.available() and not quantised):
        records["proof"] = proof.against_transformers(source, model)
        out.print(
            "largest logit difference from transformers: "
            f"{records['proof']['max_logit_difference']:.2e}, "
            f"KL {records['proof']['kl_divergence']:.2e} over {records['proof']['tokens']} tokens"
        )
    path = pretrained.save(model, output, records)
    out.print(f"written: {path}")
    return 0


def _import_encoder(source: Path, output: Path, verify: str) -> int:
    from ziggurat.models import pretrained_encoder, proof

    out = console.output()
    encoder = pretrained_encoder.load(source)
    sentence = encoder.sentence
    out.print(
        f"{encoder.model.config.kind}: {encoder.model.parameter_count:,} parameters; texts to "
        f"{sentence.max_length} tokens, pooling {sentence.pooling}"
        + (", normalised" if sentence.normalize else "")
    )
    records: dict[str, Any] = {"source": hub.name_of(source)}
    if verify == "always" or (verify == "auto" and proof.available()):
        records["proof"] = proof.encoder_against_transformers(source, encoder)
        difference = records["proof"]["max_state_difference"]
        out.print(f"largest difference of states from transformers: {difference:.2e}")
    path = pretrained_encoder.save(encoder, output, records)
    out.print(f"written: {path}")
    return 0


def _import_diffusers(source: Path, output: Path, verify: str) -> int:
    if verify == "always":
        raise ConfigError(
            "import diffusers --verify", found="always", expected="auto or never: nothing compares"
        )
    from ziggurat.models import diffusers_layout, image_pipeline

    out = console.output()
    pipeline = diffusers_layout.load(source)
    latents = pipeline.autoencoder
    beside = "" if latents is None else f", autoencoder {latents.parameter_count:,}"
    kind = pipeline.model.config.kind
    out.print(f"{kind}: {pipeline.model.parameter_count:,} parameters{beside}")
    path = image_pipeline.save(pipeline, output, {"source": hub.name_of(source)})
    out.print(f"written: {path}", soft_wrap=True)
    return 0


def _import_weights(
    source: Path,
    output: Path,
    verify: str,
    config: Path | None,
    prefix: str | None,
    item: str | None,
) -> int:
    if verify == "always":
        raise ConfigError(
            "import weights --verify",
            found="always",
            expected="auto or never: transformers cannot read this source",
        )
    if config is None:
        raise ConfigError(
            "import weights --config",
            found="nothing",
            expected="the directory with config.json and tokenizer.json of this model",
        )
    if config.is_file() and config.name != "config.json":
        raise ConfigError("import weights --config", found=config.name, expected="config.json")
    from ziggurat.checkpoint import foreign
    from ziggurat.models import foreign_weights, pretrained

    out = console.output()
    directory = config.parent if config.is_file() else hub.local(config)
    if prefix and not prefix.endswith("."):
        prefix += "."
    with foreign.open(source, item) as tensors:
        model, naming = foreign_weights.load(tensors, directory, prefix=prefix, source=str(source))
    under = f" under {naming.prefix!r}" if naming.prefix else ""
    left = f", {naming.left_out} other tensors left out" if naming.left_out else ""
    out.print(f"{tensors.kind}: names of {naming.style}{under}{left}", markup=False)
    out.print(f"{model.model.config.kind}: {model.model.parameter_count:,} parameters")
    records = {"source": source.name, "container": tensors.kind, "prefix": naming.prefix}
    path = pretrained.save(model, output, records)
    out.print(f"written: {path}")
    return 0


def _check_kind(kind: str, source: Path) -> None:
    if kind == "weights":
        return
    if kind == "diffusers":
        from ziggurat.models.diffusers_layout import is_diffusers

        if not source.is_dir() or not is_diffusers(source):
            raise ModelError(
                f"import diffusers {source}",
                found="no model_index.json, and no config.json of diffusers",
                expected="a directory of diffusers",
            )
        return
    if source.exists() and source.is_file() != (kind == "gguf"):
        raise ModelError(
            f"import {kind} {source}",
            found="a file" if source.is_file() else "a directory",
            expected="a GGUF file" if kind == "gguf" else "a directory with config.json",
            fix="use import hf DIR, import gguf FILE or import weights SOURCE",
        )
    if kind == "hf" and source.is_dir() and not (source / "config.json").is_file():
        raise ModelError(
            f"import hf {source}", found="no config.json", expected="a Hugging Face directory"
        )


def main(args: list[str]) -> int:
    if args and args[0] not in ("hf", "gguf", "diffusers", "weights", "--help", "-h"):
        raise ConfigError(
            "import", found=repr(args[0]), expected="hf, gguf, diffusers or weights",
            fix=EXAMPLE.partition("\n")[0],
        )  # fmt: skip
    return console.run(import_, args, "ziggurat import", EXAMPLE)

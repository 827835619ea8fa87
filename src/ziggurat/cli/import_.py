"""``ziggurat import``: read a published model, or another program's checkpoint, into ours."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ziggurat.cli import console
from ziggurat.core import hub
from ziggurat.core.errors import ConfigError, ModelError, ZigguratError
from ziggurat.core.json_types import JsonObject

if TYPE_CHECKING:
    from ziggurat.models.loading.pretrained import Pretrained
    from ziggurat.models.loading.pretrained_kinds import PretrainedKind
    from ziggurat.models.loading.proof import EncoderProof, Proof
    from ziggurat.nn.precision import Precision

EXAMPLE = """ziggurat import hf DOWNLOADS/SmolLM2-135M --output models/smollm2
  ziggurat import weights ckpt.pt --config DOWNLOADS/SmolLM2-135M --output models/tuned"""


Dtype = Literal["float32", "bfloat16", "float16"]


def import_(
    kind: Literal["hf", "gguf", "diffusers", "weights"],
    source: Path,
    /,
    output: Path,
    dtype: Dtype | None = None,
    verify: Literal["auto", "always", "never"] = "auto",
    config: Path | None = None,
    prefix_strip: str | None = None,
    item: str | None = None,
) -> int:
    """Read a Hugging Face directory, a GGUF file, a pipeline of diffusers, or the weights of
    another program's checkpoint into a checkpoint that every command takes. No pickle is executed.

    Args:
        kind: hf (config.json and safetensors), gguf (one file), diffusers
            (model_index.json, or a DiT's config.json) or weights (a .pt file, a DCP or Orbax
            directory, safetensors, of Hugging Face, TorchTitan, MaxText, Megatron-core or
            nanoGPT).
        source: the directory or file, or a repository of the Hugging Face hub: owner/name,
            owner/name@revision, owner/name/FILE.gguf.
        output: new directory for the checkpoint.
        dtype: type of the stored weights, of quantised ones too; default each weight's own, and
            quantised weights stay so.
        verify: hf and gguf: compare logits with transformers, refuse the model if they differ, and
            keep the result beside the weights; auto: if transformers is installed and the weights
            are floats, or a GGUF file's.
        config: weights: the directory of config.json and tokenizer.json, or that config.json.
        prefix_strip: weights: what stands before each tensor's name; default: found out.
        item: weights: which tree of an Orbax checkpoint or of a step, such as params.
    """
    from ziggurat.nn.precision import Precision

    source = hub.local(source)
    _check_kind(kind, source)
    precision = Precision(param=dtype or "float32", as_stored=dtype is None)
    options = {"config": config, "prefix-strip": prefix_strip, "item": item}
    if kind == "weights":
        return _import_weights(source, output, verify, config, prefix_strip, item, precision)
    for option, value in options.items():
        if value is not None:
            raise ConfigError(
                f"import {kind} --{option}", found=value, expected="this option for weights only"
            )
    if kind == "diffusers":
        return _import_diffusers(source, output, verify, precision)
    from ziggurat.models.loading.pretrained_kinds import kind_of

    published = kind_of(source) if kind == "hf" else None
    if published is not None:
        return _import_published(published, source, output, verify, precision)
    return _import_language(source, output, verify, precision, quantized_file=kind == "gguf")


def _import_language(
    source: Path, output: Path, verify: str, precision: "Precision", *, quantized_file: bool
) -> int:
    from ziggurat.models.loading import pretrained
    from ziggurat.models.quantized import formats_of

    expand = not precision.as_stored
    described = pretrained.load(source, precision=precision, expand=expand, in_files=True)
    _say_what(described.model.config.kind, described.model.parameter_count, described.params)
    quantised = formats_of(described.params)
    if quantised:
        console.output().print(f"{len(quantised)} quantised weights, kept so")
    # a GGUF file's are dequantised in float32 on both sides
    rounded = quantised and not quantized_file
    why = "its weights are quantised; --verify always compares" if rounded else ""
    _stream(described, source, output, {"source": hub.name_of(source)}, {}, verify, why)
    return 0


def _stream(
    described: "Pretrained",
    source: Path,
    output: Path,
    records: dict[str, Any],
    options: dict[str, Any],
    verify: str,
    why_not: str,
) -> None:
    """Write a model's weights from its files into a checkpoint, and compare them unless there is a
    reason against that.

    Args:
        described: the model, its weights in their files.
        source: what it is read from.
        output: the checkpoint's directory.
        records: what is kept beside the arrays.
        options: whatever decides which weights they are.
        verify: always, auto or never.
        why_not: a reason against comparing if nobody insists; empty: none.
    """
    from ziggurat.models.loading import proof
    from ziggurat.models.loading.streaming import StreamedImport

    count = described.model.parameter_count
    if not why_not and count > proof.MOST_PARAMETERS:
        why_not = f"{count:,} parameters in float32, twice; --verify always compares"
    with StreamedImport(described, output, source, options) as streamed:
        if streamed.finished:
            done = f"{streamed.finished} of {len(streamed.batches)} parts"
            console.output().print(f"resuming: {done} are on disk", soft_wrap=True)
        try:
            with console.progress("importing (MB)") as told:
                streamed.write(told)
            records |= _proven(
                verify,
                source,
                why_not,
                lambda: proof.against_transformers(source, streamed.loaded()),
            )
        except ZigguratError:
            streamed.discard()
            raise
        console.output().print(f"written: {streamed.commit(records)}", soft_wrap=True)


def _import_published(
    kind: "PretrainedKind[Any]", source: Path, output: Path, verify: str, precision: "Precision"
) -> int:
    """Import an encoder, a model of speech, or one that reads images."""
    read = kind.load(source, precision=precision)
    name, count = kind.size(read)
    _say_what(name, count, read.params, f"; {kind.details(read)}")
    records: JsonObject = {"source": hub.name_of(source)}
    records |= _proven(verify, source, "", lambda: kind.compare(source, read))
    console.output().print(f"written: {kind.save(read, output, records)}")
    return 0


def _proven(
    verify: str, source: Path, why_not: str, compare: "Callable[[], Proof | EncoderProof]"
) -> JsonObject:
    """The record of a comparison with transformers, or a line that says why there is none.

    Args:
        verify: always, auto or never.
        source: what was read.
        why_not: a reason against comparing if nobody insists; empty: none.
        compare: makes the comparison.

    Raises:
        ProofError: the models differ.
        EnvironmentError, UnreadableError: there must be a comparison, and cannot be.
    """
    from ziggurat.models.loading import proof

    out = console.output()
    if verify == "never":
        why_not = "--verify never"
    elif verify == "auto" and not why_not and not proof.available():
        why_not = "transformers or torch is not installed (pip install 'ziggurat[oracle]')"
    if verify != "always" and why_not:
        out.print(f"not compared with transformers: {why_not}", markup=False, soft_wrap=True)
        return {}
    try:
        found = compare()
    except proof.UnreadableError as error:
        if verify == "always":
            raise
        out.print(f"not compared: {error}", markup=False, soft_wrap=True)
        return {}
    proof.require(found, source)
    tolerance = f"tolerance {found['tolerance']:.1e}"
    if "max_logit_difference" in found:
        said = (
            f"largest logit difference from transformers: {found['max_logit_difference']:.2e} "
            f"({tolerance}), KL {found['kl_divergence']:.2e} over {found['tokens']} tokens"
        )
    else:
        difference = found["max_state_difference"]
        said = f"largest difference of states from transformers: {difference:.2e} ({tolerance})"
    out.print(said, soft_wrap=True)
    return {"proof": found}


def _say_what(kind: str, count: int, params: Any, more: str = "") -> None:
    from ziggurat.models.loading.placing import float_type

    console.output().print(
        f"{kind}: {count:,} parameters, {float_type(params)}{more}", soft_wrap=True
    )


def _import_diffusers(source: Path, output: Path, verify: str, precision: "Precision") -> int:
    if verify == "always":
        raise ConfigError(
            "import diffusers --verify", found="always", expected="auto or never: nothing compares"
        )
    from ziggurat.models.loading import diffusers_layout, pretrained_pipeline

    out = console.output()
    pipeline = diffusers_layout.load(source, precision=precision)
    latents = pipeline.autoencoder
    beside = "" if latents is None else f", autoencoder {latents.parameter_count:,}"
    kind = pipeline.model.config.kind
    _say_what(kind, pipeline.model.parameter_count, pipeline.weights, beside)
    out.print("not compared with diffusers: import does so for language models and encoders")
    path = pretrained_pipeline.save(pipeline, output, {"source": hub.name_of(source)})
    out.print(f"written: {path}", soft_wrap=True)
    return 0


def _import_weights(
    source: Path,
    output: Path,
    verify: str,
    config: Path | None,
    prefix: str | None,
    item: str | None,
    precision: "Precision",
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
    from ziggurat.checkpoint import containers
    from ziggurat.models.loading import foreign_weights

    out = console.output()
    directory = config.parent if config.is_file() else hub.local(config)
    if prefix and not prefix.endswith("."):
        prefix += "."
    with containers.open(source, item) as tensors:
        model, naming = foreign_weights.load(
            tensors,
            directory,
            prefix=prefix,
            source=str(source),
            precision=precision,
            in_files=True,
        )
        under = f" under {naming.prefix!r}" if naming.prefix else ""
        left = f", {naming.left_out} other tensors left out" if naming.left_out else ""
        out.print(f"{tensors.kind}: names of {naming.style}{under}{left}", markup=False)
        _say_what(model.model.config.kind, model.model.parameter_count, model.params)
        why = "it does not read this source"
        records = {"source": source.name, "container": tensors.kind, "prefix": naming.prefix}
        options = {"config": config, "prefix": naming.prefix, "item": item}
        _stream(model, source, output, records, options, verify, why)
    return 0


def _check_kind(kind: str, source: Path) -> None:
    if kind == "weights":
        return
    if kind == "diffusers":
        from ziggurat.models.loading.diffusers_layout import is_diffusers

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

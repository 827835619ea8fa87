"""``ziggurat export``: write a model, its adapters, or the tensors of a checkpoint, as others read
them."""

from pathlib import Path
from typing import Literal

from ziggurat.cli import console
from ziggurat.core import hub
from ziggurat.core.errors import ConfigError

EXAMPLE = """ziggurat export hf runs/tiny-python --output exported
  ziggurat export hf models/small-int4 --quantization compressed-tensors --output small-int4-hf
  ziggurat export gguf models/small-int4 --output small-int4.gguf
  ziggurat export peft runs/chain-dpo --output adapters
  ziggurat export weights ckpt.pt --to safetensors --output ckpt.safetensors"""


def export(
    kind: Literal["hf", "gguf", "peft", "diffusers", "weights"],
    model: Path,
    /,
    output: Path,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    max_shard_gb: float | None = None,
    quantization: Literal["compressed-tensors", "gptq", "awq"] | None = None,
    to: Literal["safetensors", "pt", "distcp", "orbax"] | None = None,
    item: str | None = None,
    select: tuple[str, ...] = (),
) -> int:
    """Write config.json, safetensors and tokenizer as transformers reads them; one GGUF file as
    llama.cpp reads it; adapters as PEFT reads them; a diffusion model as diffusers reads it; or the
    tensors of any checkpoint, bit for bit and under their own names, in another container.

    Args:
        kind: hf (a whole model, adapters merged), gguf (a whole model of the families llama,
            mixtral, qwen2, qwen3 or qwen3_moe; int8 and int4 in blocks, other matrices float16),
            peft (adapters alone), diffusers (a whole diffusion model) or weights (tensors alone, of
            a model of any kind).
        model: hf, gguf: a run, a checkpoint step, a Hugging Face directory, PEFT's adapters or a
            GGUF file; peft: a run that trained adapters, or its step; diffusers: a run or a step of
            a diffusion model; weights: a .pt file, a DCP or Orbax directory, safetensors, a run or
            a checkpoint step.
        output: new directory or file.
        dtype: hf, diffusers: type of the stored weights; default each weight's own.
        max_shard_gb: hf, diffusers: largest safetensors file, in GB; default 5.
        quantization: hf: keep quantised matrices so, in this layout; default floats.
        to: weights: the container: safetensors (a file if the output's name ends so), pt (a file
            for torch.load), distcp (for torch.distributed.checkpoint) or orbax.
        item: weights: which tree of an Orbax checkpoint or of a step; ours: params.
        select: weights: only tensors that match one of these patterns, such as 'model.*'.
    """
    model = hub.local(model)
    whole = {"dtype": dtype, "max-shard-gb": max_shard_gb}
    options = {"weights": {"to": to, "item": item, "select": select or None}}
    options["hf"] = {"quantization": quantization} | ({} if kind == "diffusers" else whole)
    for other in options.keys() - {kind}:
        for option, value in options[other].items():
            if value is not None:
                raise ConfigError(
                    f"export {kind} --{option}",
                    found=value,
                    expected=f"this option for {other} only",
                )
    if kind == "peft":
        return _export_peft(model, output)
    if kind == "weights":
        return _export_weights(model, output, to, item, select)
    from ziggurat.api.models import write

    shard = 5.0 if max_shard_gb is None else max_shard_gb
    source, path = write(model, output, kind, dtype, shard, quantization)
    console.output().print(f"{source} -> {path}", soft_wrap=kind == "diffusers")
    return 0


def _export_peft(run: Path, output: Path) -> int:
    import json

    from ziggurat.core.errors import ModelError
    from ziggurat.models import LanguageModel, adapters
    from ziggurat.models.loading import peft, pretrained, step_files

    step = step_files.step_directory(run)
    if step is None or not (step / adapters.ADAPTER_FILE).is_file():
        raise ModelError(
            f"model {run}", found="no adapters", expected="a run with an [adapter] table"
        )
    record = adapters.read_record(step)
    file = step / step_files.MODEL_FILE
    values = json.loads(file.read_text(encoding="utf-8"))
    model = LanguageModel.build(step_files.model_config(values, str(file)))
    arrays = pretrained.read_adapters(step, model, record.lora)
    path = peft.write_peft(output, record.lora, arrays, model, str(record.base))
    console.output().print(f"{step} -> {path}: adapters of {record.base}", markup=False)
    return 0


def _export_weights(
    source: Path, output: Path, to: str | None, item: str | None, select: tuple[str, ...]
) -> int:
    from rich.progress import Progress

    from ziggurat.checkpoint import containers

    if to is None:
        raise ConfigError(
            "export weights --to", found="nothing", expected="one of " + ", ".join(containers.KINDS)
        )
    out = console.output()
    names: list[str] = []
    size = 0
    with Progress(console=out, transient=True, disable=not out.is_terminal) as progress:
        task = progress.add_task("writing", total=None)

        def show(name: str, done: int, total: int) -> None:
            nonlocal size
            size = total
            names.append(name)
            progress.update(task, description=name, completed=done, total=total)

        path = containers.convert(source, to, output, item=item, select=select, progress=show)
    out.print(f"{source} -> {path}: {len(names)} tensors, {size / 1e6:.1f} MB", markup=False)
    return 0


def main(args: list[str]) -> int:
    if args and args[0] not in ("hf", "gguf", "peft", "diffusers", "weights", "--help", "-h"):
        raise ConfigError(
            "export", found=repr(args[0]), expected="hf, gguf, peft, diffusers or weights",
            fix=EXAMPLE.partition("\n")[0],
        )  # fmt: skip
    return console.run(export, args, "ziggurat export", EXAMPLE)

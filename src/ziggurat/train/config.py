"""The run file: one typed tree from data to report.

A useful run file is under thirty lines; see ``recipes/``.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Protocol, runtime_checkable

from ziggurat.checkpoint import CheckpointConfig
from ziggurat.core import config
from ziggurat.core.kinds import Kinds
from ziggurat.data import ImageData, TokenizerConfig
from ziggurat.mesh import MeshConfig
from ziggurat.models import FAMILIES, DitConfig, Family
from ziggurat.models.adapters import Lora
from ziggurat.nn.layer_scan import Remat
from ziggurat.optim import OPTIMIZERS, OptimizerConfig
from ziggurat.profile.sampling import ProfileConfig
from ziggurat.quantize import QuantizedTraining
from ziggurat.train.registries import DATA, OBJECTIVES


@config.node
class PretrainedModel:
    """Start from trained weights."""

    kind: Literal["pretrained"] = "pretrained"
    path: Path
    """A run, a checkpoint step, a Hugging Face directory or id (``owner/name``), a GGUF file, or a
    pipeline of diffusers."""


@runtime_checkable
class Kind(Protocol):
    """Interface of a run file's table that comes in variants, such as ``[data]``; its key ``kind``
    names the variant."""

    @property
    def kind(self) -> str:
        """Name of the variant."""
        ...


@runtime_checkable
class DataKind(Kind, Protocol):
    """Interface of every variant of ``[data]``."""

    @property
    def batch_size(self) -> int:
        """Rows of the global batch."""
        ...

    @property
    def eval_fraction(self) -> float:
        """Share of the data that is held out for evaluation."""
        ...


PYTHON = "python"
"""The kind of a table in whose place a Python caller gave an object."""


@config.node
class FromPython:
    """An optimizer or objective that a Python caller gave; see :mod:`ziggurat.train.supplied`."""

    kind: Literal["python"] = "python"
    type: str = ""
    """Class or function of the object."""


@config.node
class DataFromPython:
    """Batches from a source that a Python caller gave; see :mod:`ziggurat.train.supplied`."""

    kind: Literal["python"] = "python"
    type: str = ""
    """Class of the source."""
    batch_size: int
    """Rows of the global batch."""
    sequence_length: int
    """Tokens of a row."""

    @property
    def eval_fraction(self) -> float:
        """Share of documents held out: none."""
        return 0.0


def _model_node(family: Family) -> type | None:
    return None if family.encoder else family.config_class


ModelNode = Annotated[
    Kind, Kinds(FAMILIES, node=_model_node, also={"dit": DitConfig, "pretrained": PretrainedModel})
]
"""Architecture to train from scratch, by family, or weights to start from."""
DataNode = Annotated[DataKind, Kinds(DATA, default="text", also={PYTHON: DataFromPython})]
"""Data to train on; a table without ``kind`` is text."""
ObjectiveNode = Annotated[
    Kind, Kinds(OBJECTIVES, node=lambda kind: kind.node, default="lm", also={PYTHON: FromPython})
]
"""Objective to learn; a table without ``kind`` is language modelling."""
OptimizerNode = Annotated[
    OptimizerConfig | FromPython, Kinds(OPTIMIZERS, also={PYTHON: FromPython})
]
"""How to learn it."""


@config.node
class TrainConfig:
    """Settings of the training loop."""

    steps: int
    """Optimizer steps of the whole run. A run may be resumed with more; its schedule stays as it
    began, see optimizer.schedule.steps."""
    accumulate: int = 1
    """Micro-batches per step; the batch is cut into this many equal parts."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of activations and matmuls; ``auto``: bfloat16 on accelerators, float32 on CPU."""
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which parameters enter a step and are saved. With bfloat16 the optimizer updates
    float32 copies (4 more bytes a parameter), and gradients are added up in float32."""
    ema_decay: float | None = None
    """Keep an average of the parameters, of which each step leaves this share, fewer in the first
    steps; it is evaluated and drawn from. E.g. 0.999; default none."""
    remat: Remat = "none"
    """Activations that blocks keep for the backward pass: all, results of weight matmuls, or the
    block's input only."""
    attention: str = "auto"
    """Attention kernel, see ``ziggurat.kernels.attention``."""
    max_bad_steps: int = 10
    """Stop after this many steps in a row whose loss or gradient is not finite; each is skipped."""
    compile_cache: Path | None = None
    """Directory that keeps compiled programs, so that a restart finds them; may be shared."""
    callbacks: tuple[str, ...] = ()
    """Callbacks by name, as plugins register them."""
    stop_within_s: float | None = None
    """Most time from SIGTERM to the end; then the process ends with what was saved before."""

    def __post_init__(self):
        for name in ("steps", "accumulate", "max_bad_steps"):
            config.require(getattr(self, name) >= 1, name, getattr(self, name), "a number >= 1")
        decay = self.ema_decay
        config.require(decay is None or 0 < decay < 1, "ema_decay", decay, "between 0 and 1")
        within = self.stop_within_s
        config.require(within is None or within > 0, "stop_within_s", within, "more than 0")


@config.node
class EvaluationConfig:
    """Settings of evaluation on held-out documents (needs ``data.eval_fraction``)."""

    every: int | None = None
    """Steps between evaluations; default only at the end."""
    batches: int = 8
    """Most batches evaluated each time."""

    def __post_init__(self):
        config.require(self.every is None or self.every >= 1, "every", self.every, "at least 1")
        config.require(self.batches >= 1, "batches", self.batches, "at least 1")


@config.node
class ReportConfig:
    """Figures recorded while training and shown at the end."""

    tensorboard: bool = True
    """Write TensorBoard event files beside ``metrics.jsonl``."""
    sinks: tuple[str, ...] = ()
    """Further metric sinks by name, as plugins register them."""
    prompts: tuple[str, ...] = ()
    """Prompts that the trained model continues in the report."""
    sample_tokens: int = 64
    """Tokens generated for each prompt."""
    sample_images: int = 0
    """Images of each class in the report's picture, for models that draw."""
    sample_guidance: float = 1.0
    """How much more of its class an image gets than without it."""

    def __post_init__(self):
        config.require(self.sample_tokens >= 1, "sample_tokens", self.sample_tokens, "at least 1")
        config.require(self.sample_images >= 0, "sample_images", self.sample_images, "at least 0")


EVALUATION_METRICS = ("eval_loss", "eval_perplexity", "eval_accuracy")
COMPARABLE = ("loss", "accuracy", "grad_norm", *EVALUATION_METRICS)
"""Metrics by which checkpoints can be compared."""


SYNONYMS = {
    "learning_rate": "optimizer.lr",
    "max_learning_rate": "optimizer.lr",
    "base_learning_rate": "optimizer.lr",
    "peak_lr": "optimizer.lr",
    "optim": "optimizer.kind",
    "opt_type": "optimizer.kind",
    "optimizer_type": "optimizer.kind",
    "adam_beta1": "optimizer.beta1",
    "adam_beta2": "optimizer.beta2",
    "adam_epsilon": "optimizer.eps",
    "epsilon": "optimizer.eps",
    "adam_weight_decay": "optimizer.weight_decay",
    "max_grad_norm": "optimizer.clip_norm",
    "gradient_clipping_threshold": "optimizer.clip_norm",
    "grad_clip": "optimizer.clip_norm",
    "warmup": "optimizer.schedule.warmup_steps",
    "num_warmup_steps": "optimizer.schedule.warmup_steps",
    "lr_scheduler_type": "optimizer.schedule.kind",
    "lr_scheduler": "optimizer.schedule.kind",
    "max_steps": "train.steps",
    "num_steps": "train.steps",
    "num_train_steps": "train.steps",
    "total_steps": "train.steps",
    "iterations": "train.steps",
    "max_iters": "train.steps",
    "num_train_epochs": "data.epochs",
    "num_epochs": "data.epochs",
    "per_device_train_batch_size": "data.batch_size",
    "per_device_batch_size": "data.batch_size",
    "train_batch_size": "data.batch_size",
    "global_batch_size": "data.batch_size",
    "global_batch_size_to_train_on": "data.batch_size",
    "micro_batch_size": "data.batch_size and train.accumulate",
    "gradient_accumulation_steps": "train.accumulate",
    "gradient_accumulation": "train.accumulate",
    "gradient_checkpointing": "train.remat",
    "remat_policy": "train.remat",
    "activation_checkpointing": "train.remat",
    "max_length": "data.sequence_length",
    "max_seq_length": "data.sequence_length",
    "max_seq_len": "data.sequence_length",
    "max_target_length": "data.sequence_length",
    "seq_len": "data.sequence_length",
    "seq_length": "data.sequence_length",
    "context_length": "data.sequence_length",
    "block_size": "data.sequence_length",
    "dataset": "data.sources",
    "dataset_path": "data.sources",
    "dataset_name": "data.sources",
    "datasets": "data.sources",
    "train_file": "data.sources",
    "validation_split_percentage": "data.eval_fraction",
    "bf16": "train.precision",
    "fp16": "train.precision",
    "dtype": "train.precision",
    "mixed_precision": "train.precision",
    "weight_dtype": "train.param_dtype",
    "save_steps": "checkpoint.every",
    "checkpoint_period": "checkpoint.every",
    "save_total_limit": "checkpoint.keep_last",
    "eval_steps": "evaluation.every",
    "eval_interval": "evaluation.every",
    "output_dir": "output",
    "base_output_directory": "output",
    "run_name": "name",
    "init_weights_seed": "seed",
    "data_seed": "seed",
    "model_name_or_path": "model.path",
    "load_parameters_path": "model.path",
    "pretrained_model": "model.path",
    "tokenizer_path": "tokenizer.path",
    "tokenizer_name": "tokenizer.path",
    "hidden_size": "model.d_model",
    "emb_dim": "model.d_model",
    "base_emb_dim": "model.d_model",
    "n_embd": "model.d_model",
    "intermediate_size": "model.d_ff",
    "mlp_dim": "model.d_ff",
    "base_mlp_dim": "model.d_ff",
    "num_hidden_layers": "model.n_layers",
    "num_layers": "model.n_layers",
    "base_num_decoder_layers": "model.n_layers",
    "n_layer": "model.n_layers",
    "num_attention_heads": "model.n_heads",
    "num_heads": "model.n_heads",
    "n_head": "model.n_heads",
    "num_key_value_heads": "model.n_kv_heads",
    "lora_r": "adapter.rank",
    "lora_rank": "adapter.rank",
    "lora_alpha": "adapter.alpha",
    "target_modules": "adapter.targets",
    "lora_target_modules": "adapter.targets",
    "beta": "objective.beta",
    "temperature": "objective.temperature",
    "num_generations": "objective.group",
    "report_to": "report.tensorboard",
    "ici_fsdp_parallelism": "mesh.fsdp",
    "ici_tensor_parallelism": "mesh.tensor",
    "ici_data_parallelism": "mesh.data",
    "tensor_parallel_size": "mesh.tensor",
    "tensor_parallel_degree": "mesh.tensor",
    "data_parallel_shard_degree": "mesh.fsdp",
}
"""Names of a key in transformers, TRL, MaxText, TorchTitan and nanoGPT, for hints."""


@config.node
class RunConfig:
    """The whole run file."""

    SYNONYMS: ClassVar[Mapping[str, str]] = SYNONYMS

    name: str
    """Directory of the run inside ``output``."""
    output: Path = Path("runs")
    """Where runs live; also holds the cache of tokenised data."""
    seed: int = 0
    """Keys every random draw."""
    model: ModelNode
    """Architecture, or weights to start from."""
    tokenizer: TokenizerConfig | None = None
    """How text becomes ids; default: the pretrained model's own."""
    data: DataNode
    """Data to train on."""
    objective: ObjectiveNode = dataclasses.field(default_factory=lambda: OBJECTIVES["lm"].node())
    """Objective to learn."""
    adapter: Lora | None = None
    """Train adapters beside the weights, which stay as they are; all weights if not given."""
    quantize: QuantizedTraining | None = None
    """Train the weights for a quantised format, to which they are rounded in every step."""
    optimizer: OptimizerNode
    """How to learn it."""
    train: TrainConfig
    """The loop."""
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    """Held-out loss."""
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    """Checkpoints: their content and interval."""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    """How the devices are used."""
    profile: ProfileConfig = dataclasses.field(default_factory=ProfileConfig)
    """When a step is traced."""
    report: ReportConfig = dataclasses.field(default_factory=ReportConfig)
    """Recorded figures and the report."""

    def __post_init__(self):
        plain = self.name not in ("", ".", "..") and "/" not in self.name and "\\" not in self.name
        config.require(plain, "name", self.name, "a directory name without slashes")
        config.require(self.seed >= 0, "seed", self.seed, "a number >= 0")
        kind = self.objective.kind
        adapted = self.adapter is None or kind == PYTHON or OBJECTIVES[kind].adapted
        expected = "nothing for this objective; those of post-training take one"
        config.require(adapted, "adapter", "a table", expected)
        if self.quantize is not None:
            fits = kind != PYTHON and OBJECTIVES[kind].quantized
            expected = "nothing for this objective; lm and sft train for a format"
            config.require(fits, "quantize", "a table", expected)
            expected = "no [adapter], or a base that ziggurat quantize has made, without [quantize]"
            config.require(self.adapter is None, "quantize", "a table with [adapter]", expected)
        if self.checkpoint.keep_best:
            self._check_metric(self.checkpoint.metric)
        if PYTHON not in (self.objective.kind, self.data.kind):
            self._check_images()

    def _check_images(self) -> None:
        """Whether model, data and objective are all of images, or none of them."""
        images = OBJECTIVES[self.objective.kind].images
        found, wanted = self.data.kind, "images" if images else "text or problems"
        fits = (found == "images") == images
        config.require(fits, "data.kind", found, f"{wanted} for {self.objective.kind}")
        model, drawn = self.model.kind, self.model.kind == "dit"
        expected = "dit" if images else "a language model"
        fits = drawn == images or model == "pretrained"
        config.require(fits, "model.kind", model, f"{expected} for {self.objective.kind}")
        if images:
            nothing = f"nothing for {self.objective.kind}"
            config.require(self.tokenizer is None, "tokenizer", "a table", nothing)
            config.require(not self.report.prompts, "report.prompts", "prompts", nothing)
        else:
            drawn = self.report.sample_images
            expected = f"0 for {self.objective.kind}, which draws nothing"
            config.require(drawn == 0, "report.sample_images", drawn, expected)

    def _check_metric(self, metric: str) -> None:
        """Whether ``checkpoint.keep_best`` has something to go by at every checkpoint."""
        expected = "one of " + ", ".join(COMPARABLE)
        config.require(metric in COMPARABLE, "checkpoint.metric", metric, expected)
        held = self.data.eval_fraction > 0 and self.evaluation.every is not None
        if metric in EVALUATION_METRICS:
            expected = "data.eval_fraction and evaluation.every set, or another metric"
            config.require(held, "checkpoint.metric", metric, expected)

    @property
    def row_tokens(self) -> int | None:
        """Tokens of a row inside the model; ``None`` where only the starting weights will tell."""
        if isinstance(self.data, ImageData):
            return self.model.tokens if isinstance(self.model, DitConfig) else None
        return getattr(self.data, "sequence_length", None)

    @property
    def directory(self) -> Path:
        """Directory of the run."""
        return self.output / self.name

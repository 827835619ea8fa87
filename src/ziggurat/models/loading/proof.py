"""Proof that a conversion is right: the same logits as transformers on the same tokens.

Both sides compute in float32 on the weights that are written, so that what is left is the order of
sums. A difference above the tolerance is an error: :func:`require` raises it.
"""

import importlib
import importlib.util
import math
from pathlib import Path
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from ziggurat.core import prng
from ziggurat.core.errors import EnvironmentError, ModelError
from ziggurat.models.conversion.text_part import text_part
from ziggurat.models.language_model import LanguageModel
from ziggurat.models.loading.hf_directory import hf_values
from ziggurat.models.loading.pretrained import Pretrained
from ziggurat.models.loading.pretrained_encoder import PretrainedEncoder
from ziggurat.models.loading.pretrained_speech import PretrainedSpeech
from ziggurat.models.loading.pretrained_vision import PretrainedVision
from ziggurat.models.quantized import formats_of
from ziggurat.models.two_tower_model import TwoTowerModel
from ziggurat.nn.encoder_inputs import PatchInputConfig
from ziggurat.nn.precision import Precision

FLOAT32_TOLERANCE = 1e-4
"""Largest difference, relative to the largest logit or 1, whichever is greater. Float32 keeps 6e-8
of a number and a model sums a few thousand terms some hundred times: right conversions differ by
1e-6 to 2e-5 of it (SmolLM2-135M: 1e-5), wrong ones by 1e-2 and more."""
QUANTIZED_TOLERANCE = 1e-2
"""With quantised weights: transformers multiplies by dequantised weights of the type of the scales,
here a scale multiplies the finished sum; bfloat16 scales keep 4e-3 of a number."""
ACTIVATION_TOLERANCE = 1e-1
"""With quantised activations: values at the border of two steps of 1/127 fall to either side by the
order of sums, layer after layer."""
KL_TOLERANCE = 1e-2
"""Nats; with quantised activations the mean over positions says more than the largest logit."""
MOST_PARAMETERS = 1_000_000_000
"""Largest model that an import compares unasked: transformers' float32 copy takes 4 GB then, and
ours as much again where it is float32, while importing alone takes less than one."""
LONGEST = 1040
"""Positions compared at most: those of a window of 1024 and a few beyond it."""


class ProofError(ModelError):
    """Error: a conversion differs from transformers by more than the tolerance."""


class UnreadableError(ModelError):
    """Error: transformers cannot read the source, so nothing can be compared."""


class Proof(TypedDict):
    """Difference of our logits from transformers', both in float32."""

    max_logit_difference: float
    kl_divergence: float
    """Mean over positions of KL(theirs || ours), nats."""
    tolerance: float
    """Largest difference of logits that is accepted."""
    tokens: int
    """Positions compared."""
    transformers: str
    """Version compared with."""


class EncoderProof(TypedDict):
    """Difference of our encoder states from transformers', both in float32."""

    max_state_difference: float
    tolerance: float
    """Largest difference of states that is accepted."""
    tokens: int
    """Positions compared."""
    transformers: str
    """Version compared with."""


def available() -> bool:
    """Whether transformers and torch are installed."""
    return all(importlib.util.find_spec(name) for name in ("transformers", "torch"))


def require(proof: Proof | EncoderProof, source: Path) -> None:
    """Refuse a conversion whose difference is above the tolerance, or not a number.

    Raises:
        ProofError: it is; the text names both.
    """
    logits = "max_logit_difference" in proof
    difference = proof["max_logit_difference"] if logits else proof["max_state_difference"]
    divergence = proof["kl_divergence"] if logits else 0.0
    if difference <= proof["tolerance"] and divergence <= KL_TOLERANCE:
        return
    also = f" and KL {divergence:.2e} nats" if logits else ""
    raise ProofError(
        f"conversion of {source}",
        found=f"{'logits' if logits else 'states'} that differ from transformers "
        f"{proof['transformers']} by {difference:.2e}{also}",
        expected=f"at most {proof['tolerance']:.2e}" + (f" and {KL_TOLERANCE:g}" if also else ""),
        fix="nothing was written; report this, or leave the comparison out with --verify=never",
    )


def against_transformers(source: Path, ours: Pretrained, tokens: int = 64) -> Proof:
    """Run both models over the same random tokens.

    Args:
        source: what ``ours`` was read from: a Hugging Face directory or a GGUF file.
        ours: the converted model, computing in float32. Where it was read with another type of
            parameters than the source's, transformers' are rounded to that type too.
        tokens: length of the sequence; longer where the model has a window, so that it counts.

    Raises:
        EnvironmentError: transformers or torch is missing.
        UnreadableError: transformers cannot read the source.
    """
    torch, transformers = _oracle()
    tokens = min(max(tokens, _beyond_window(ours.model)), ours.model.config.max_sequence_length)
    ids = prng.host_stream(0, "proof").integers(0, ours.model.config.vocab_size, (1, tokens))
    options = {} if source.is_dir() else {"gguf_file": source.name}
    directory = source if source.is_dir() else source.parent
    auto = transformers.AutoModelForCausalLM
    if source.is_dir() and text_part(hf_values(source / "config.json")) is not None:
        auto = transformers.AutoModelForImageTextToText
    theirs = _theirs(auto, torch, directory, ours.model.precision, options)
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
    found = np.asarray(jax.jit(ours.model.logits)(ours.params, jnp.asarray(ids)))
    return _of_logits(found, expected, _tolerance(source, ours.params), transformers.__version__)


def speech_against_transformers(source: Path, ours: PretrainedSpeech, tokens: int = 32) -> Proof:
    """Run both models of speech over the same noise and random tokens.

    Args:
        source: the Hugging Face directory that ``ours`` was read from.
        ours: the converted model, computing in float32.
        tokens: length of the sequence.

    Raises:
        EnvironmentError: transformers or torch is missing.
        UnreadableError: transformers cannot read the source.
    """
    torch, transformers = _oracle()
    model, draw = ours.model, prng.host_stream(0, "proof")
    noise = draw.normal(size=(1, *ours.window)).astype(np.float32)
    ids = draw.integers(0, model.parts.vocab_size, (1, min(tokens, model.parts.positions)))
    kind = transformers.AutoModelForSpeechSeq2Seq
    theirs = _theirs(kind, torch, source, model.precision, {})
    with torch.no_grad():
        given = {"input_features": torch.tensor(noise), "decoder_input_ids": torch.tensor(ids)}
        expected = theirs(**given).logits.numpy()
    found = np.asarray(jax.jit(model.logits)(ours.params, noise, jnp.asarray(ids)))
    return _of_logits(found, expected, FLOAT32_TOLERANCE, transformers.__version__)


def _of_logits(found: np.ndarray, expected: np.ndarray, tolerance: float, version: str) -> Proof:
    """The record of a comparison; the tolerance is of logits of order one."""
    p, q = (jax.nn.log_softmax(jnp.asarray(logits)) for logits in (expected, found))
    return Proof(
        max_logit_difference=_difference(found, expected),
        kl_divergence=float(jnp.mean(jnp.sum(jnp.exp(p) * (p - q), axis=-1))),
        tolerance=tolerance * _scale(expected),
        tokens=found.shape[1],
        transformers=version,
    )


def encoder_against_transformers(
    source: Path, ours: PretrainedEncoder, tokens: int = 64
) -> EncoderProof:
    """Run both encoders over the same random tokens, and over a padded row of them.

    Args:
        source: the Hugging Face directory that ``ours`` was read from.
        ours: the converted encoder, computing in float32.
        tokens: length of the sequence.

    Raises:
        EnvironmentError: transformers or torch is missing.
        UnreadableError: transformers cannot read the source.
    """
    torch, transformers = _oracle()
    tokens = min(tokens, ours.sentence.max_length)
    ids = prng.host_stream(0, "proof").integers(0, ours.model.vocab_size, (2, tokens))
    mask = np.arange(tokens)[None] < np.array([[tokens], [max(1, tokens // 2)]])
    theirs = _theirs(transformers.AutoModel, torch, source, ours.model.precision, {})
    with torch.no_grad():
        masked = torch.tensor(mask.astype(np.int64))
        expected = theirs(torch.tensor(ids), attention_mask=masked).last_hidden_state.numpy()
    hidden = jax.jit(ours.model.hidden)(ours.params, jnp.asarray(ids), jnp.asarray(mask, int))
    return EncoderProof(
        max_state_difference=_difference(np.asarray(hidden)[mask], expected[mask]),
        tolerance=FLOAT32_TOLERANCE * _scale(expected[mask]),
        tokens=int(mask.sum()),
        transformers=transformers.__version__,
    )


def vision_against_transformers(source: Path, ours: PretrainedVision) -> EncoderProof:
    """Run both encoders of images over the same random pixels; of two towers both, over random
    tokens too.

    Args:
        source: the Hugging Face directory that ``ours`` was read from.
        ours: the converted encoder, computing in float32.

    Raises:
        EnvironmentError: transformers or torch is missing.
        UnreadableError: transformers cannot read the source.
    """
    torch, transformers = _oracle()
    model, draw = ours.model, prng.host_stream(0, "proof")
    tower = model.image if isinstance(model, TwoTowerModel) else model
    image = tower.encoder.input
    assert isinstance(image, PatchInputConfig)
    pixels = draw.normal(size=(2, image.channels, *image.image)).astype(np.float32)
    theirs = _theirs(transformers.AutoModel, torch, source, model.precision, {})
    given = {"pixel_values": torch.tensor(pixels)}
    if isinstance(model, TwoTowerModel):
        longest = model.text.max_length
        assert longest is not None  # texts have learned positions
        ids = draw.integers(0, model.text.vocab_size, (2, longest))
        with torch.no_grad():
            out = theirs(input_ids=torch.tensor(ids), **given)
        expected = np.concatenate([out.text_embeds.numpy(), out.image_embeds.numpy()])
        texts = jax.jit(model.text_vectors)(ours.params, jnp.asarray(ids))
        images = jax.jit(model.image_vectors)(ours.params, jnp.asarray(pixels))
        found = np.concatenate([np.asarray(texts), np.asarray(images)])
    else:
        with torch.no_grad():
            expected = theirs(**given).last_hidden_state.numpy()
        found = np.asarray(jax.jit(model.hidden)(ours.params, jnp.asarray(pixels)))
    return EncoderProof(
        max_state_difference=_difference(found, expected),
        tolerance=FLOAT32_TOLERANCE * _scale(expected),
        tokens=int(np.prod(found.shape[:-1])),
        transformers=transformers.__version__,
    )


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max()) if found.shape == expected.shape else math.inf


def _scale(expected: np.ndarray) -> float:
    return max(1.0, float(np.abs(expected).max()))


def _tolerance(source: Path, params: Any) -> float:
    if source.is_file():  # GGUF: both sides dequantise to float32
        return FLOAT32_TOLERANCE
    formats = formats_of(params).values()
    if any(format.activation for format in formats):
        return ACTIVATION_TOLERANCE
    return QUANTIZED_TOLERANCE if formats else FLOAT32_TOLERANCE


def _beyond_window(model: LanguageModel) -> int:
    """A length at which the shortest window hides something, if that is affordable; else 0."""
    windows = [la.rule.window for la in model.decoder.layers if la.rule.window is not None]
    wanted = min(windows, default=0) + 16
    return wanted if windows and wanted <= LONGEST else 0


def _theirs(
    kind: Any, torch: Any, directory: Path, precision: Precision, options: dict[str, Any]
) -> Any:
    """Transformers' model in float32, its weights rounded to a type that was asked for."""
    try:
        model = kind.from_pretrained(directory, dtype=torch.float32, **options).eval()
    except Exception as error:  # whatever another program raises
        line = " ".join(str(error).split())[:200]
        raise UnreadableError(
            f"comparison of {directory} with transformers",
            found=f"{type(error).__name__}: {line}",
            expected="a model that transformers reads",
            fix="leave the comparison out with --verify=never",
        ) from error
    if not precision.as_stored and precision.param != "float32":
        with torch.no_grad():
            for tensor in model.state_dict().values():
                if tensor.is_floating_point():
                    tensor.copy_(tensor.to(getattr(torch, precision.param)).float())
    return model


def _oracle() -> tuple[Any, Any]:
    """Modules torch and transformers."""
    if not available():
        raise EnvironmentError(
            "comparison with transformers",
            found="transformers or torch not installed",
            expected="both",
            fix="pip install 'ziggurat[oracle]', or leave the comparison out",
        )
    # by name: neither is a dependency, so a type checker need not find them
    return importlib.import_module("torch"), importlib.import_module("transformers")

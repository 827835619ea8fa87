"""Writes the recorded keys of config classes in transformers and diffusers: config_keys.json.

For each type of model that we read, every key that the library's own class takes or its code reads,
with the default. With --check, computes it anew and compares. Needs transformers and diffusers.
"""

import argparse
import ast
import dataclasses
import inspect
import json
import math
import pathlib
import sys
import types
from collections.abc import Iterator
from typing import Any

import diffusers
import transformers
from transformers.models.auto import modeling_auto

ROOT = pathlib.Path(__file__).parents[1]
OUT = ROOT / "src" / "ziggurat" / "models" / "conversion" / "config_keys.json"
LIBRARY = pathlib.Path(transformers.__file__).parent
MODEL_TYPES = (
    "arcee", "bert", "camembert", "clip", "cohere", "cohere2", "deberta-v2", "deepseek_v2",
    "deepseek_v3", "dinov2", "dinov2_with_registers", "dinov3_vit", "distilbert", "dots1",
    "electra", "ernie4_5", "ernie4_5_moe", "exaone4",
    "falcon", "gemma", "gemma2", "gemma3_text", "gemma4_text", "glm", "glm4", "glm4_moe", "gpt2",
    "gpt_neox",
    "gpt_oss", "granite", "granitemoe", "granitemoehybrid", "helium", "hunyuan_v1_dense",
    "hunyuan_v1_moe", "lfm2", "lfm2_moe", "llama", "mamba2", "minimax_m2", "ministral",
    "ministral3", "mistral", "mixtral", "modernbert", "mpnet", "nemotron", "nomic_bert", "olmo2",
    "olmo3", "olmoe", "opt", "phi", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_5_moe_text",
    "qwen3_5_text",
    "qwen3_moe", "qwen3_next", "roberta", "seed_oss", "siglip", "smollm3", "solar_open", "stablelm",
    "starcoder2", "vit", "whisper", "xlm-roberta",
)  # fmt: skip
PARTS = (
    "clip_text_model", "clip_vision_model", "pixtral", "qwen2_5_vl_text", "qwen2_5_vl_vision",
    "qwen2_vl_text", "qwen3_5_moe_vision", "qwen3_5_vision", "qwen3_vl_moe_text",
    "qwen3_vl_moe_vision", "qwen3_vl_text", "qwen3_vl_vision", "siglip_text_model",
    "siglip_vision_model",
)  # fmt: skip
"""Types that are read as parts of others only, so that none of their own classes is."""
MULTIMODAL = (
    "gemma3", "gemma4", "llava", "mistral3", "qwen2_5_vl", "qwen2_vl", "qwen3_5", "qwen3_5_moe",
    "qwen3_vl", "qwen3_vl_moe",
)  # fmt: skip
"""Types of models of images and text, whose classes :mod:`ziggurat.models.conversion.text_part`
names."""
DIFFUSERS_CLASSES = (
    "AutoencoderKL", "DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler",
    "DiTTransformer2DModel", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler",
)  # fmt: skip
SHARED = ("masking_utils.py", "cache_utils.py", "modeling_layers.py", "utils/output_capturing.py")
"""Code of every model that looks into its config."""
MIXINS = ("configuration_utils.py", "modeling_rope_utils.py")
"""Code of the classes from which every config inherits."""
TASKS = {
    "image": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "speech": "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    "causal": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "headless": "MODEL_MAPPING_NAMES",
    "masked": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "sequence": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "token": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "question": "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
    "choice": "MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES",
    "next": "MODEL_FOR_NEXT_SENTENCE_PREDICTION_MAPPING_NAMES",
}
"""What a class of a type of model is for, and transformers' table of such classes."""
UNLISTED = {"electra": {"ElectraForPreTraining": "replaced"}}
"""Classes that stand in none of these tables, with their task, by type of model."""


def record() -> dict[str, Any]:
    """The whole file."""
    generation = transformers.GenerationConfig().to_dict().keys() - {"_from_model_config"}
    return {
        "versions": {m.__name__: m.__version__ for m in (transformers, diffusers)},
        "generation": sorted(generation),
        "rope": sorted(transformers.modeling_rope_utils.RopeParameters.__annotations__),
        "types": {name: model_type(name) for name in sorted((*MODEL_TYPES, *PARTS, *MULTIMODAL))}
        | {name: of_diffusers(name) for name in DIFFUSERS_CLASSES},
    }


def model_type(name: str) -> dict[str, Any]:
    """One type of transformers' models."""
    cls = transformers.CONFIG_MAPPING[name]
    folder = pathlib.Path(inspect.getfile(cls)).parent
    keys: dict[str, Any] = {}
    for file in (*(LIBRARY / name for name in SHARED), *sorted(folder.glob("modeling_*.py"))):
        keys |= read_by_code(file, cls, "config")
    for file in (*(LIBRARY / name for name in MIXINS), pathlib.Path(inspect.getfile(cls))):
        keys |= read_by_code(file, cls, "self")
    fields = {field.name: field_default(field) for field in dataclasses.fields(cls)}
    keys |= fields
    made = cls()
    if hasattr(made, "rope_parameters"):
        theta = cls.default_theta
        both = theta if isinstance(theta, dict) else {"global": theta}
        keys["rope_theta"] = both["global"]
        keys["rope_parameters"] = without_theta(made.rope_parameters)
    # both names of an alias mean one value; the one that is a field has the default
    aliases = {
        b if a in fields else a: a if a in fields else b for a, b in cls.attribute_map.items()
    }
    keys = {k: plain(v) for k, v in keys.items() if not k.startswith("_") and k not in aliases}
    return {
        "classes": {} if name in PARTS + MULTIMODAL else dict(classes(name)),
        "aliases": {alias: key for alias, key in aliases.items() if key in keys},
        "keys": dict(sorted(keys.items())),
    }


def classes(name: str) -> Iterator[tuple[str, str]]:
    """Names of a type's classes, each with its task."""
    for task, table in TASKS.items():
        found = getattr(modeling_auto, table).get(name, ())
        for one in (found,) if isinstance(found, str) else found:
            yield one, task
    yield from UNLISTED.get(name, {}).items()


def read_by_code(file: pathlib.Path, cls: type, owner: str) -> dict[str, Any]:
    """Keys that code asks a config for without its having to have them, with the default there.

    Args:
        file: the code.
        cls: the config's class, of which defaults may speak.
        owner: what the config is called: in models' code a name with ``config`` in it, in its own
            class's code ``self``, where keyword arguments that are no fields count too.
    """
    found = {}
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        called, arguments = ast.unparse(node.func), node.args
        if called in ("getattr", "hasattr") and len(arguments) >= 2:
            holder = ast.unparse(arguments[0])
            key, default = arguments[1], arguments[2:3]
            meant = "config" in holder if owner == "config" else holder == owner
        elif owner == "self" and called in ("kwargs.get", "kwargs.pop") and arguments:
            key, default = arguments[0], arguments[1:2]
            meant = file.name != "configuration_utils.py" or key_of_init(node, file)
        else:
            continue
        if meant and isinstance(key, ast.Constant):
            found.setdefault(key.value, evaluated(default, cls))
    return {key: value for key, value in found.items() if isinstance(key, str)}


def key_of_init(node: ast.Call, file: pathlib.Path) -> bool:
    """Whether a call in the base class stands where a config is made, not where one is loaded."""
    source, _ = inspect.getsourcelines(transformers.PreTrainedConfig.__post_init__)
    first = transformers.PreTrainedConfig.__post_init__.__code__.co_firstlineno
    return first <= node.lineno < first + len(source)


def evaluated(default: list[ast.expr], cls: type) -> Any:
    """A default as a value; ``None`` where there is none or it depends on other keys."""
    known = {"self": types.SimpleNamespace(default_theta=cls.default_theta)}
    try:
        value = eval(ast.unparse(default[0]), known) if default else None
    except (AttributeError, NameError, TypeError):
        return None
    return value if isinstance(value, bool | int | float | str) else None


def field_default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def without_theta(rope: dict[str, Any]) -> dict[str, Any]:
    """Rotary settings but for the base, which is a key of its own."""
    rest = {key: value for key, value in rope.items() if key != "rope_theta"}
    return {k: without_theta(v) if isinstance(v, dict) else v for k, v in rest.items()}


def of_diffusers(name: str) -> dict[str, Any]:
    """One class of diffusers."""
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    keys = {key: plain(p.default) for key, p in parameters.items() if key != "self"}
    return {"classes": {name: "diffusers"}, "aliases": {}, "keys": dict(sorted(keys.items()))}


def plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, float) and math.isinf(value):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    found = json.dumps(record(), indent=1) + "\n"
    if not parser.parse_args().check:
        OUT.write_text(found, encoding="utf-8")
    elif json.loads(OUT.read_text(encoding="utf-8")) != json.loads(found):
        sys.exit(f"{OUT.name} is not what transformers and diffusers say now; run without --check")


if __name__ == "__main__":
    main()

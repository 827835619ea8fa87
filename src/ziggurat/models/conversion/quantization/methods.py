"""Methods of quantisation by the name that ``config.json`` gives them."""

from collections.abc import Callable, Mapping
from typing import Any

from ziggurat.core.errors import did_you_mean
from ziggurat.models.conversion.quantization.awq import AwqReader
from ziggurat.models.conversion.quantization.bitsandbytes import BitsAndBytesReader
from ziggurat.models.conversion.quantization.compressed_tensors import CompressedTensorsReader
from ziggurat.models.conversion.quantization.fp4 import ModelOptReader, Mxfp4Reader
from ziggurat.models.conversion.quantization.fp8 import Fp8Reader
from ziggurat.models.conversion.quantization.gptq import GptqReader
from ziggurat.models.conversion.quantization.module import MethodReader, refuse

METHODS: Mapping[str, Callable[[Mapping[str, Any]], MethodReader]] = {
    "gptq": GptqReader,
    "awq": AwqReader,
    "fp8": Fp8Reader,
    "fbgemm_fp8": Fp8Reader,
    "bitsandbytes": BitsAndBytesReader,
    "compressed-tensors": CompressedTensorsReader,
    "modelopt": ModelOptReader,
    "modelopt_fp4": ModelOptReader,
    "mxfp4": Mxfp4Reader,
}
"""Readers by ``quantization_config.quant_method``."""


def method_reader(settings: Mapping[str, Any]) -> MethodReader:
    """The reader of a checkpoint's method.

    Args:
        settings: ``quantization_config`` of its ``config.json``.

    Raises:
        ModelError: the method is not known, or a switch is not implemented; it is named.
    """
    method = settings.get("quant_method")
    if method is None and (settings.get("load_in_4bit") or settings.get("load_in_8bit")):
        method = "bitsandbytes"  # which wrote no name at first
    if method == "auto-round":
        method = str(settings.get("packing_format", "")).rpartition("auto_")[2]
        if method not in ("gptq", "awq"):
            refuse(
                "packing_format",
                repr(settings.get("packing_format")),
                "auto_round:auto_gptq or auto_round:auto_awq",
            )
    if not isinstance(method, str) or method not in METHODS:
        near = did_you_mean(str(method), METHODS)
        refuse(
            "quant_method",
            repr(method),
            "one of " + ", ".join(sorted(METHODS)),
            near or "convert the model, or load its float version and run ziggurat quantize",
        )
    return METHODS[method](settings)

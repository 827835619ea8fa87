"""Model cards of the protocol: metadata, and Triton's model configuration."""

from ziggurat.core.json_types import JsonObject
from ziggurat.serve.predict.config import All, Latest, ModelSettings
from ziggurat.serve.predict.repository import Version
from ziggurat.serve.predict.signature import Tensor

PLATFORM = "ziggurat_stablehlo"
_TYPES = {"BF16": "TYPE_BF16", "FP16": "TYPE_FP16", "FP32": "TYPE_FP32", "FP64": "TYPE_FP64"}


def metadata(version: Version, numbers: list[int]) -> JsonObject:
    """The protocol's model metadata; -1 stands where any size goes."""
    signature = version.bundle.manifest.signature
    return {
        "name": version.model,
        "versions": [str(number) for number in numbers],
        "platform": PLATFORM,
        "inputs": [_tensor(tensor) for tensor in signature.inputs],
        "outputs": [_tensor(tensor) for tensor in signature.outputs],
    }


def configuration(version: Version, devices: int) -> JsonObject:
    """Triton's ``ModelSettings`` of a bundle, as far as they apply.

    As Triton has it, ``dims`` leave the batch out when ``max_batch_size`` is above 0, which it
    is if requests are joined.
    """
    signature, batching = version.bundle.manifest.signature, version.batching
    batched = version.bundle.manifest.joins_rows
    kind = version.bundle.programs[0].device.platform
    found: JsonObject = {
        "name": version.model,
        "platform": PLATFORM,
        "backend": "xla",
        "version_policy": _policy(version.settings),
        "max_batch_size": batching.max_batch_size if batched else 0,
        "input": [_configured(tensor, batched) for tensor in signature.inputs],
        "output": [_configured(tensor, batched) for tensor in signature.outputs],
        "instance_group": [
            {
                "name": "device",
                "kind": "KIND_GPU"
                if kind == "gpu"
                else "KIND_CPU"
                if kind == "cpu"
                else "KIND_MODEL",
                "count": devices,
            }
        ],
        "parameters": {"digest": {"string_value": version.bundle.digest}},
    }
    if batched:
        found["dynamic_batching"] = {
            "preferred_batch_size": list(batching.buckets),
            "max_queue_delay_microseconds": batching.max_queue_delay_us,
            "preserve_ordering": devices == 1,
            "default_queue_policy": {"max_queue_size": batching.max_queue},
        }
    return found


def _tensor(tensor: Tensor) -> JsonObject:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.wire_shape}


def _configured(tensor: Tensor, batched: bool) -> JsonObject:
    kind = _TYPES.get(tensor.datatype, f"TYPE_{tensor.datatype}")
    dims = tensor.wire_shape[1:] if batched else tensor.wire_shape
    return {"name": tensor.name, "data_type": kind, "dims": dims}


def _policy(settings: ModelSettings) -> JsonObject:
    policy = settings.versions
    if isinstance(policy, Latest):
        return {"latest": {"num_versions": policy.n}}
    if isinstance(policy, All):
        return {"all": {}}
    return {"specific": {"versions": list(policy.versions)}}

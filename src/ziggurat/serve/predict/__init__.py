"""Serving of everything that is not text generation: hermetic bundles behind KServe v2.

:func:`export` writes a JAX function with its weights as a bundle; :class:`LoadedBundle` checks and
runs one without the code that made it; :class:`Repository` holds models and versions;
:class:`Predict` answers HTTP and gRPC. Names are imported on first use.
"""

from typing import TYPE_CHECKING

from ziggurat.core import lazy

if TYPE_CHECKING:
    from ziggurat.serve.predict.bundle import LoadedBundle
    from ziggurat.serve.predict.config import Batching, ModelSettings, PredictConfig
    from ziggurat.serve.predict.export import export
    from ziggurat.serve.predict.manifest import BundleManifest, verify
    from ziggurat.serve.predict.repository import Repository
    from ziggurat.serve.predict.service import Predict
    from ziggurat.serve.predict.signature import Signature, Tensor

_HOMES = {
    "Batching": "config",
    "LoadedBundle": "bundle",
    "BundleManifest": "manifest",
    "ModelSettings": "config",
    "Predict": "service",
    "PredictConfig": "config",
    "Repository": "repository",
    "Signature": "signature",
    "Tensor": "signature",
    "export": "export",
    "verify": "manifest",
}

__all__ = [
    "Batching",
    "BundleManifest",
    "LoadedBundle",
    "ModelSettings",
    "Predict",
    "PredictConfig",
    "Repository",
    "Signature",
    "Tensor",
    "export",
    "verify",
]

__getattr__, __dir__ = lazy.names(__name__, _HOMES)

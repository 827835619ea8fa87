"""Optional packages: which extra of Ziggurat installs a module that is not there.

The core installation trains, generates and exports; what more a command needs comes with an extra
(``pip install 'ziggurat[serve]'``). A module that is missing is reported as one line that names the
extra, by whoever caught the ``ModuleNotFoundError``: the command line does so for every command.

>>> print(missing(ModuleNotFoundError("No module named 'grpc'", name="grpc.aio")))
module grpc: found none installed; pip install 'ziggurat[serve]'
"""

from ziggurat.core.errors import EnvironmentError

MODULES: dict[str, str] = {
    "cloudpickle": "cluster",
    "flatbuffers": "serve",
    "gcsfs": "gcs",
    "google": "serve",  # protobuf
    "grpc": "serve",
    "grpc_health": "serve",
    "grpc_reflection": "serve",
    "httptools": "serve",
    "libtpu": "plan-tpu",
    "llguidance": "serve",
    "openai": "demo",
    "PIL": "images",
    "prometheus_client": "serve",
    "ray": "cluster",
    "s3fs": "s3",
    "sklearn": "images",
    "starlette": "serve",
    "tokamax": "kernels",
    "transformers": "oracle",
    "uvicorn": "serve",
    "uvloop": "serve",
    "xprof": "profile",
}
"""Top-level module -> the extra whose requirement brings it."""


def missing(error: ModuleNotFoundError) -> EnvironmentError | None:
    """The one-line error for an optional package that is not installed.

    Returns:
        ``None`` if the module belongs to no extra: then a required package is missing, or the code
        is wrong, and the original error says more.
    """
    module = (error.name or "").partition(".")[0]
    if module not in MODULES:
        return None
    fix = f"pip install 'ziggurat[{MODULES[module]}]'"
    return EnvironmentError(f"module {module}", found="none installed", fix=fix)

"""Serving. ``serve.llm`` is the engine for language models and OpenAI's API over it,
``serve.embedding`` its embeddings, ``serve.app`` makes one application of such parts, and
``serve.server`` runs that on a socket. ``serve.predict`` (KServe v2) comes with its issue.

The package is callable: ``ziggurat.serve(model)`` is :func:`ziggurat.api.serving.serve`.
"""

from ziggurat.core import lazy

lazy.make_callable(__name__)

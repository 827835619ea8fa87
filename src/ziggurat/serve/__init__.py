"""Serving. ``serve.llm`` is the engine for language models and OpenAI's API over it,
``serve.embedding`` its embeddings, ``serve.app`` makes one application of such parts, and
``serve.server`` runs that on a socket. ``serve.predict`` (KServe v2) comes with its issue."""

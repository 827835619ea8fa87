"""Serving. ``serve.llm`` is the engine for language models, ``serve.app`` speaks OpenAI's API over
it, ``serve.server`` runs that on a socket. ``serve.predict`` (KServe v2) comes with its issue."""

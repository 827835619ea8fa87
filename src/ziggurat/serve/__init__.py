"""Serving: serve.llm speaks OpenAI's API; serve.predict (KServe v2) comes with its issue."""

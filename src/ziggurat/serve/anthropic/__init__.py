"""Anthropic's Messages API: request and response bodies, and the endpoints over an engine."""

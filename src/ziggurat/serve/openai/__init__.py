"""OpenAI's HTTP API: request and response bodies, and the endpoints over engines and encoders."""

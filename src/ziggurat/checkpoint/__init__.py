"""Checkpoints: a step directory exists wholly or not at all and holds parameters, optimizer,
data state, PRNG and run file together; plus safetensors and GGUF containers."""

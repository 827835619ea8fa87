"""Layers in Flax NNX: linear, norm, rope, attention with an attention-context argument, gated MLP
and embeddings, with logical axis names on every parameter."""

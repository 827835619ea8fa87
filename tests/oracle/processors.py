"""How far PyTorch's results lie apart on two kinds of processor."""

APART = 5e-5
"""Largest difference of logits up to ten. Up to 1.8e-5 is seen between a CPU with AVX2 and one with
AVX-512 (granite_hybrid/dense-rope in float32); stored results come from one of them."""

"""Quantization by rules (PTQ, QAT, QLoRA) on Qwix, without model edits. Empty until its issue
lands."""

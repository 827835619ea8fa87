"""Data: sources, tokenizers, packing and a global order, such that the batch of step s is a
function of (config, seed, s) and of nothing else."""

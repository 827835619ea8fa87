"""Training: the pure step, the loop around it, evaluation, metrics and the run report."""

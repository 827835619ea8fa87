"""Losses of post-training as pure functions, each with the equation of its paper."""

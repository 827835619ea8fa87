"""Optimizers, schedules and losses, declared once in the run file and built on Optax."""

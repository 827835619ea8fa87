"""Kernels: one folder per operation, each with a plain reference in jax.numpy and faster
implementations behind one dispatching function."""

"""Objectives: what a step minimises, as a function from parameters and batch to sums."""

"""Run-file nodes of objectives: ``[objective]``, and the problems of reinforcement learning.

They are below the run file, which is made of them, and below the objectives that they configure.
"""

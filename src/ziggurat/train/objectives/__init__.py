"""Kinds of objective: what a run learns, each behind the seam of :mod:`ziggurat.train.parts`.

``kinds`` lists those of this package, and ``text`` holds what objectives over text share; the run
file's ``[objective]`` is declared in :mod:`ziggurat.train.nodes`.
"""

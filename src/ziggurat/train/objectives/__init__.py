"""Kinds of objective: what a run learns, each behind the seam of :mod:`ziggurat.train.parts`.

``nodes`` declares the run file's ``[objective]``, ``kinds`` lists those of this package, and
``text`` holds what objectives over text share.
"""

"""Objectives of this package: language modelling and diffusion, each with its run-file node.

``text`` holds what objectives over text share.
"""

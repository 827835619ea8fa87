"""Ziggurat: the whole JAX AI stack as one product.

One install, one typed run file, one model definition and one checkpoint from raw text to a
served model. Importing this package imports nothing heavy; import the part you need::

    from ziggurat import checkpoint, models
"""

__version__ = "0.1.0"

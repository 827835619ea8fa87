"""Checks of small inputs that once failed, one module for each folder of them."""

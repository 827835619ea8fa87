"""Core: what every other package stands on and nothing else.

Errors in one form, typed config with provenance, counter-based PRNG streams, atomic files and
directories, registries, pytree naming, the dimension glossary and the protocols by which sibling
packages meet. ``core`` imports no other part of Ziggurat.
"""

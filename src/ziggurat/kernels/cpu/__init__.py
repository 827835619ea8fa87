"""C++ kernels for CPUs, called by XLA through its foreign function interface.

The sources lie in ``source/``; every ``.cc`` there is compiled, and every handler in it is found
without being listed anywhere else. Three modules around them:

* ``build``: compile the sources for a CPU (when the package is installed, or by
  ``ziggurat kernels build``);
* ``library``: find and load what was built, or say why not;
* ``operation``: an operation of the library as a JAX function, with its plain form for every
  program in which the C++ cannot stand.

See ``docs/adr/0010-cpu-kernels.md``.
"""

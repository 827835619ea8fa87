"""``python -m ziggurat.cluster`` is a host, as :mod:`ziggurat.cluster.local_engine` starts it."""

from ziggurat.cluster.worker import main

main()

"""``python -m ziggurat.cluster`` is a host, as :mod:`ziggurat.cluster.local_engine` starts it."""

from ziggurat.cluster.worker import main

if __name__ == "__main__":
    main()

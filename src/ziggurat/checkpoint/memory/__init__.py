"""The memory tier: snapshots in keeper processes that outlive the trainer, here and on peers."""

"""PyTorch's ``.pt`` files and distributed checkpoints (DCP), without PyTorch: no pickle is run."""

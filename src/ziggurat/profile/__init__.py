"""Profiling: what the hardware could do, what a model costs, where time and memory went.

``hardware`` has the peaks of accelerators, ``flops`` model FLOPs and model FLOP utilisation (MFU),
``timers`` step times and a ledger of wall time, ``memory`` the memory of host, devices and compiled
programs.

>>> from ziggurat.profile import flops, hardware
>>> cost = flops.training_flops_per_token(
...     7_000_000_000, layers=32, heads=32, head_dim=128, sequence=4096)
>>> share = flops.mfu(150_000, cost, chips=32, peak=hardware.peak("TPU v5p", "bf16"))
>>> f"{share:.1%}"
'49.5%'
"""

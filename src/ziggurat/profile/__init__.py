"""Profiling: the hardware peak table, model FLOP utilisation (MFU) and step timing; later the
goodput ledger, sampled traces and readable reports on XProf."""

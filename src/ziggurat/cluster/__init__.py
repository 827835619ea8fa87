"""Multi-host training from one Python controller, elastic, on Ray. Empty until its issue
lands."""

"""Planning: ahead-of-time compilation of a real training step for a TPU topology with no TPU
present: does it fit, how fast is it, what does it cost? Empty until its issue lands."""

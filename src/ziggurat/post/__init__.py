"""Post-training: SFT, preference, RL and distillation objectives. Empty until its issue lands."""

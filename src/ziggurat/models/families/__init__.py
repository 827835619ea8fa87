"""Model families: one folder each, with its config, its published names and what else differs."""

"""Model families: one scanned decoder, and a folder per family holding only what differs
(config, sharding, Hugging Face names, presets)."""

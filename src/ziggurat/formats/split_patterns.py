"""Regular expressions that cut text into words before byte-level BPE, by the model they are of."""

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA_3 = rf"{CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
"""Llama 3's, which is GPT-4's (cl100k): at most three digits together."""
QWEN_2 = rf"{CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}"
"""Qwen's from the first to Qwen 3: each digit alone."""

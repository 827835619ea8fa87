"""Published names and settings, translated: config keys, weight names, GGUF keys, rotary order."""

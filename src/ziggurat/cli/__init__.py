"""The ziggurat command: thin commands over the packages below."""

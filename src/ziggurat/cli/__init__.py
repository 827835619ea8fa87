"""The ziggurat command: thin verbs over the packages below."""

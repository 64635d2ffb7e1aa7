"""Anthropic's API: messages, and what they cost in tokens."""

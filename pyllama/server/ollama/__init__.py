"""Ollama's API: chat, generate, and what it tells of the model."""

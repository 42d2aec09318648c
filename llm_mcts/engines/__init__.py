"""Engines: what runs the language models."""

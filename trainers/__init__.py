"""Trainers of policies and critics, and the self-improvement loop."""

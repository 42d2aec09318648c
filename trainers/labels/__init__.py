"""Automatic labels: outcomes, step labels by rollouts, and critiques."""

"""Reward models that others have published, asked the way their authors ask them."""

"""The self-improvement loop: search, rows, critics, policy, gate."""

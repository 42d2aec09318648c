"""Critics as a search uses them: states in, scores in [0, 1] out."""

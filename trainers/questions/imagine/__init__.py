"""New training questions made of old ones: other numbers, backward, rephrased, harder."""

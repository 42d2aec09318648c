"""The trainers of the critics."""

"""From searched trees to training rows, and from rows to tokens."""

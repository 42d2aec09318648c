"""Which questions are searched: the curriculum, answers by agreement, and imagined questions."""

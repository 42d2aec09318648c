"""The parts of the server: what is read and written (`chat`), what clients may ask for (`limits`), the endpoints (`app`)."""

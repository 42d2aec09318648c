"""The parts of the server.

`limits`: what clients may ask for, and who may search when; `chat`: requests; `reply`: replies; `app`: the endpoints, the only
part that needs FastAPI.
"""

"""One optimiser loop and its losses, for every trainer."""

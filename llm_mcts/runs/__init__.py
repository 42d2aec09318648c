"""Run directories: their files, locks, journals, provenance, progress, and how they are read."""

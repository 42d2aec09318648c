"""From names and folders to the critics of a run."""

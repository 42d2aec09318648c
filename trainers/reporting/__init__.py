"""The parts of the self-improvement report; `trainers.report` puts them together."""

"""The trainers of the policy."""

"""vLLM in this process, for one machine with GPUs."""

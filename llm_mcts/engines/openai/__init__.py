"""OpenAI-compatible servers: one or several replicas, over HTTP."""

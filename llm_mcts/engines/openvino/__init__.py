"""OpenVINO GenAI, for speed on CPUs."""

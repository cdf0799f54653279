"""Where weights come from: hub, packaged SmolLM2, tiny random models; their formats and stored states."""

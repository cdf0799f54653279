"""Where weights come from: model hub, packaged SmolLM2, tiny random models; their formats and stored states."""

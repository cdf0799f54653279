"""Where weights come from: the model hub, a packaged SmolLM2, tiny random models."""

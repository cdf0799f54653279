"""The reproduction: what the paper and its released scripts do, measured with `chameleon_lite`, and the verdicts."""

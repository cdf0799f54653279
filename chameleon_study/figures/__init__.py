"""Pictures: each function takes an axis and data that was measured elsewhere, draws, and returns the axis."""

"""Learning from what has passed: texts of a stream are scored first, and learned from afterwards."""

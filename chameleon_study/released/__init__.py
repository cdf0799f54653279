"""The paper's tables as its scripts make them, the way to an honest protocol, and the audit."""

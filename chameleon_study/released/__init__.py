"""The paper's tables as its released scripts make them, the way from there to an honest protocol, and the audit."""

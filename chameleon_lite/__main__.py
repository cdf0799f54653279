"""`python -m chameleon_lite`: the command line."""

from .app.cli import main

main()

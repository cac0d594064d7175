"""`python -m seqmill` is the `seqmill` command."""

from seqmill.cli import main

main()

"""`python -m perceivers`."""

from perceivers.cli import main

main()

"""`python -m perceivers`."""

from perceivers.cli import main

if __name__ == "__main__":
    main()

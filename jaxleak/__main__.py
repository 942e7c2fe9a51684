"""`python -m jaxleak`: the command line."""

from jaxleak.cli import main

if __name__ == "__main__":
    main()

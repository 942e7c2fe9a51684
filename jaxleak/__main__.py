"""`jaxleak`, and `python -m jaxleak`: the command line."""

import sys


def main() -> None:
    """Run the command line; Ctrl-C is one line while it is still being imported, too."""
    try:
        from jaxleak.cli import main as run
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted.\n")
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()

"""`vit-ipu`, and `python -m vit_ipu`."""

import sys


def main() -> None:
    """Runs the command line, whose imports can be interrupted, too."""
    try:
        from vit_ipu.cli.app import main as run

        run()
    except KeyboardInterrupt:
        print("vit-ipu: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()

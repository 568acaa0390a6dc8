"""Entry point of `vit-ipu` and `python -m vit_ipu`."""

import sys


def main() -> None:
    """Runs the command line; prints "interrupted" and exits with 130 on Ctrl-C, also during its imports."""
    try:
        from vit_ipu.cli.app import main as run
        from vit_ipu.signals import ignore_while_exiting

        try:
            run()
        finally:
            ignore_while_exiting()
    except KeyboardInterrupt:
        print("vit-ipu: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()

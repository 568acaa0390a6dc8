"""`python -m vit_ipu` is `vit-ipu`."""

from vit_ipu.cli import main

if __name__ == "__main__":
    main()

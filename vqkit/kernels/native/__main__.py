"""`python -m vqkit.kernels.native` builds the compiled search."""

import sys

from vqkit.kernels.native.build import main

if __name__ == "__main__":
    try:
        main()
    except RuntimeError as error:
        sys.exit(str(error))

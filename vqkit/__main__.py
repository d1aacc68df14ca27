"""`python -m vqkit`: see `vqkit.command_line`."""

import sys

from vqkit.command_line.main import main

if __name__ == "__main__":
    sys.exit(main())

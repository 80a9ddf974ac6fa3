"""``python -m asyncrevoke``."""

import sys

from asyncrevoke.console.cli import main

if __name__ == "__main__":
    sys.exit(main())

"""``python -m asyncrevoke``."""

import sys

from asyncrevoke.cli import main

if __name__ == "__main__":
    sys.exit(main())

"""`python -m lb` is the command `lb`."""

import sys

from lb.cli import main

if __name__ == "__main__":
    sys.exit(main())

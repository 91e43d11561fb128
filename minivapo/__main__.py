"""`python -m minivapo`: the same as the `minivapo` command."""

import sys

from minivapo.cli import main

if __name__ == "__main__":
    sys.exit(main())

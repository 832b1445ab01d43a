"""`python -m jaxlab` is `jaxlab`."""

import sys

from jaxlab.cli import main

if __name__ == "__main__":
    sys.exit(main())

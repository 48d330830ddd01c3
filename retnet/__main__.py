"""`python -m retnet` is the command `retnet`."""

import sys

from retnet.cli import main

sys.exit(main())

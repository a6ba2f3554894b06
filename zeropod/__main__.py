"""`python -m zeropod` is the command `zeropod`."""

import sys

from zeropod.cli import main

sys.exit(main())

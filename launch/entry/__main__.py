"""`python -m counterpoint COMMAND ...`: setup.cfg maps this folder onto the namespace's own."""

import sys

from counterpoint.launch.cli import main

sys.exit(main())

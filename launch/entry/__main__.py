"""`python -m counterpoint COMMAND ...`: setup.cfg maps this folder onto the namespace's own."""

import sys

# Relative to the package that this folder becomes, not to where it stands here.
from .launch.cli import main  # pyright: ignore[reportMissingImports]

sys.exit(main())

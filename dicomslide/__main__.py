"""The command line by the name of the package: ``python -m dicomslide``."""

from __future__ import annotations

import sys

from dicomslide.cli import main

if __name__ == "__main__":
    sys.exit(main())

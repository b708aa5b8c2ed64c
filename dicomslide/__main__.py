"""Entry point of ``python -m dicomslide``, which runs the command line."""

from __future__ import annotations

import sys

from dicomslide.cli import main

if __name__ == "__main__":
    sys.exit(main())

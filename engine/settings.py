"""Every setting as a Markdown table: python -m engine.settings."""

import sys

from engine.runtime.settings import table

if __name__ == "__main__":
    sys.stdout.write(table() + "\n")

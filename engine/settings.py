"""Every setting as a Markdown list: python -m engine.settings."""

import sys

from engine.runtime.settings import listing

if __name__ == "__main__":
    sys.stdout.write(listing() + "\n")

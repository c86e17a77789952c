"""Which settings are there? Prints them as the Markdown list of docs/reference.md: `python -m engine.settings`."""

import sys

from engine.runtime.settings import listing

if __name__ == "__main__":
    sys.stdout.write(listing() + "\n")

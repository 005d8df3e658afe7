"""Make the built-in models ahead of the first run: ``python -m scct_app.prepare``, in the app's folder.

The last line is the language model's folder, for a cloud of its own.
"""

from __future__ import annotations

import logging
import sys

from scct_app.models import llm_folder, slm_folder


def main() -> None:
    """Train both unless they are cached."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    slm_folder()
    sys.stdout.write(f"{llm_folder()}\n")


if __name__ == "__main__":
    main()

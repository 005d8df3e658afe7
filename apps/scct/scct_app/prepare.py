"""Make the built-in models ahead of the first run: ``python -m scct_app.prepare``, in the app's folder.

The last line is the language model's folder and the encoder's width, for a cloud of its own.
"""

from __future__ import annotations

import logging
import sys

from transformers import AutoConfig

from scct_app.models import llm_folder, slm_folder


def main() -> None:
    """Train both unless they are cached."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    width = AutoConfig.from_pretrained(slm_folder()).hidden_size
    sys.stdout.write(f"{llm_folder()} {width}\n")


if __name__ == "__main__":
    main()

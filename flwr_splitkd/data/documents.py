"""The unit of text that every source yields and every partition is made of."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Document", "documents_digest"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One piece of text and the module that it belongs to.

    Parameters
    ----------
    module
        The group that partitions keep together: a top-level module of the standard library, a user's file, or
        the value of a field that the user named.
    text
        The text itself; never empty.
    """

    module: str
    text: str

    @property
    def num_bytes(self) -> int:
        """Length of the text in UTF-8 bytes."""
        return len(self.text.encode("utf-8", "surrogatepass"))


def documents_digest(documents: Iterable[Document]) -> str:
    """Return the SHA-256 of the documents, their modules and their order, in hexadecimal."""
    digest = hashlib.sha256()
    for document in documents:
        for part in (document.module, document.text):
            encoded = part.encode("utf-8", "surrogatepass")
            # The length goes first, so that moving a boundary between two documents changes the digest.
            digest.update(len(encoded).to_bytes(8, "little"))
            digest.update(encoded)
    return digest.hexdigest()

"""Question answering data."""

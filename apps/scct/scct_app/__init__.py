"""Question answering across device, edge and cloud."""

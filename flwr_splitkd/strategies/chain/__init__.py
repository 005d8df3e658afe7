"""What a run of SCCT is made of: its rounds, where it stands, what it gives back."""

"""What the systems of this repository are measured against, on the same data."""

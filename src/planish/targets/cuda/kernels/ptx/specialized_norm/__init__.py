"""Products whose rows are normalized before they are stored."""

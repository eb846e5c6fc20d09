"""From data to ranges: what calibration observes of a network, and what it makes of it."""

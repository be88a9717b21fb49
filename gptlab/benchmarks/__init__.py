"""How fast runs and generation are, beside other loops."""

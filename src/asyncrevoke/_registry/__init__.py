"""Names that outlive a revocation: names with generations, keys, and devices found by path."""

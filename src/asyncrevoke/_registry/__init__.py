"""What outlives a revocation: names with generations, keys, and what is found by path."""

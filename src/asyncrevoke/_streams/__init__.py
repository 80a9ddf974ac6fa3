"""Byte streams whose every operation is guarded: the face that all share, and its kinds."""

"""Byte streams that guard every operation: the face that all share, and the kinds of them."""

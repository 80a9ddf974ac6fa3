"""Stand-ins for other libraries: you change one import, and your code gains revocation.

Each is a module of its own, because they contradict each other.
"""

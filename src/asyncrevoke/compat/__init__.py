"""Stand-ins for other libraries: code that uses them gains revocation by one changed import. Each is a module of its own,
because they contradict each other.
"""

"""Things that can be revoked: one kind in each file or folder, built on `asyncrevoke.lowlevel` alone."""

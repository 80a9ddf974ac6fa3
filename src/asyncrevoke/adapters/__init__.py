"""What can be taken away: one kind of thing in each file or folder, built on `asyncrevoke.lowlevel` alone."""

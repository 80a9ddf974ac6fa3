"""What can be taken away: one kind of thing per file, each built on the public names of `asyncrevoke` alone."""

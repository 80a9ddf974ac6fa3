"""A console server, and the command line: `asyncrevoke share`, `attach`, `ls`, `revoke`, `demo`."""

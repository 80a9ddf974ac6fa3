"""The protocol: refuse, kick, wait, release. Start reading at `revokable`."""

"""Programs on pseudo terminals, shared by any number of streams, each of which can be taken away."""

from .session import PtySession as PtySession, PtyStream as PtyStream, open_pty as open_pty

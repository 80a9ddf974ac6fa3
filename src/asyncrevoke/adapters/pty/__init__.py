"""Programs on pseudo terminals, shared by any number of streams. You can revoke each of them."""

from .session import (
    PtyOptions as PtyOptions,
    PtySession as PtySession,
    PtyStream as PtyStream,
    open_pty as open_pty,
    start_pty as start_pty,
)

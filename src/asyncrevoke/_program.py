"""Ends the program on ctrl-C without a traceback, while the rest is imported. So this is imported first.

It does so only if asyncrevoke is the program. Later `main` of the command line handles ctrl-C.
"""

import itertools
import signal
import sys

_started = "".join(sys.argv[:1])
if (
    _started.endswith("/asyncrevoke")
    or (_started == "-m" and ("-m", "asyncrevoke") in itertools.pairwise(sys.orig_argv))
) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # and not ignored
    signal.signal(signal.SIGINT, signal.SIG_DFL)

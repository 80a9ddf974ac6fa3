"""Where we are the program, ctrl-C ends it without a traceback while the rest is imported. So this is imported first.

When all is there, `main` of the command line takes it over.
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

#!/bin/bash
# Python's Path.glob() finds nothing when the process has no descriptor left, and says so to nobody.
#
# Versions: CPython 3.11.7, 3.12.1 and 3.13.0 on Linux.
# Expected: an OSError (EMFILE, "Too many open files"), as from os.listdir() and Path.iterdir(). 3.11 raises it.
# Seen: from 3.12 on, list(Path("/proc").glob("[0-9]*")) is an empty list.
# Whom it hurts: whoever looks through /proc, or a spool, to decide that nothing is left. A busy server so takes a full
# folder for an empty one, at the worst moment. os.listdir() tells the truth on all versions.
#
# Fails if any of that is otherwise. PYTHONS names the interpreters, one for each version to look at.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/look.py" <<'PY'
import os, pathlib, resource, sys

def outcome(look):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        return f"{len(look())} entries"
    except OSError as error:
        return error.strerror
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

globbed = outcome(lambda: list(pathlib.Path("/proc").glob("[0-9]*")))
listed = outcome(lambda: os.listdir("/proc"))
print(f"Python {sys.version.split()[0]}: glob: {globbed}; listdir: {listed}")
expected = "Too many open files" if sys.version_info < (3, 12) else "0 entries"
sys.exit((globbed, listed) != (expected, "Too many open files"))
PY
for python in ${PYTHONS:-python3}; do
  "$python" "$folder/look.py"
done

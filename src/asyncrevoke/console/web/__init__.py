"""Shares and terminals in the browser: `asyncrevoke web`. docs/web-terminal.md explains it."""

"""The key that tells an attached terminal itself something, and how that is explained."""

ESCAPE = 0x1D  # ctrl-], as telnet has it
HELP = (
    "ctrl-] then q, or a dot, detaches; ctrl-] then c throws away input that is stuck, and types ctrl-C; "
    "ctrl-] twice sends one; ctrl-] then ? shows this"
)
HINT = "ctrl-] q detaches, ctrl-] ? helps"

"""Reads from the output of programs what they changed in a terminal, and tells how to undo it.

A program that is taken away undoes nothing itself. Only what was changed is undone. A sequence that was never used may
mean something else to an unusual terminal.
"""

import re

_ALTERNATE, _MODES, _REGION, _SCREEN, _MAIN, _LAST = range(6)  # the order of undoing
#: Sequences with lasting effects. Most sequences are cursor movements and colours, which are not among them.
_LASTING = re.compile(
    rb"\x1b(?:\[(?:[?<=>]?[0-9;]{0,99}+(?: q|[hlrtunf])|>[0-9;]{0,99}+m)"
    rb"|[()*+][ -/]?[0-~]|%[@G8]|[no=>c]"
    rb"|\](?:4;[0-9]+;[^?]|1[0-2];[^?]|8;[^;\x07\x1b]*+;[^\\]))"
)
_CSI = re.compile(rb"\x1b\[([?<=>]?)([0-9;]*)(.*)")
_PEN = re.compile(rb"\x1b\[[0-9:;]*m")
_LONGEST = 256  # bytes of a sequence that arrives in pieces
_KINDS = 1000  # of changes. No program uses so many
_MOST = 16  # pushes that are counted. Terminals keep fewer
#: Modes that are on at the start: wrapping, repeated keys, the cursor, no local echo, meta keys. "On" means VT52 is off.
_ON = {b"?2", b"?7", b"?8", b"?25", b"12", b"?1034", b"?1035", b"?1036"}
_OTHER_SCREEN = {b"?47", b"?1047", b"?1049"}
_SAVED_CURSOR = b"?1048"  # is no state. Undoing it would move the cursor


class Screen:
    """The differences of a terminal from its state before."""

    def __init__(self) -> None:
        self._undo: dict[tuple[int, bytes], bytes] = {}
        self._tail = b""

    def feed(self, data: bytes) -> None:
        """Read output. A sequence may be spread over several calls."""
        out, back = data.rfind(b"\x0e"), data.rfind(b"\x0f")
        if out != back:
            self._change(_LAST, b"SO", b"\x0f" if out > back else b"")
        if not self._tail and b"\x1b" not in data:
            return
        seen = self._tail + data
        if (_LAST, b"m") not in self._undo and _PEN.search(seen):
            self._change(_LAST, b"m", b"\x1b[m")
        found = _LASTING.findall(seen)
        last = seen.rfind(b"\x1b")
        whole = (found and seen.startswith(found[-1], last)) or len(seen) - last > _LONGEST
        self._tail = b"" if whole else seen[last:]
        if not any(each[-1] in b"ut" for each in found):  # without counted sequences, the last of each kind is enough
            found = [*dict.fromkeys(reversed(found))][::-1]
        for each in found:
            self._note(each)

    def undo(self) -> bytes:
        """Return the bytes that restore the terminal when written to it."""
        return b"".join(self._undo[each] for each in sorted(self._undo))

    def _change(self, order: int, what: bytes, undo: bytes) -> None:
        """Remember how to undo a change. With nothing to undo, forget it."""
        if undo and (len(self._undo) < _KINDS or (order, what) in self._undo):
            self._undo[order, what] = undo
        else:
            self._undo.pop((order, what), None)

    def _push(self, order: int, what: bytes, undo: bytes, *, pops: int = 0) -> None:
        """Count one push more, or so many fewer."""
        before = self._undo.get((order, what), b"")
        self._change(order, what, before[len(undo) * pops :] if pops else (before + undo)[: len(undo) * _MOST])

    def _note(self, sequence: bytes) -> None:
        if csi := _CSI.fullmatch(sequence):
            self._note_csi(*csi.groups())
            return
        match sequence[1:2]:
            case b"(" | b")" | b"*" | b"+":
                self._change(_LAST, sequence[1:2], b"" if sequence[2:] == b"B" else sequence[:2] + b"B")
            case b"%":
                self._change(_LAST, b"%", b"\x1b%G" if sequence[2:] == b"@" else b"")
            case b"n" | b"o":
                self._change(_LAST, b"SO", b"\x0f")
            case b"=" | b">":
                self._change(_MODES, b"=", b"\x1b>" if sequence[1:] == b"=" else b"")
            case b"c":
                self._undo.clear()
            case _:
                self._note_osc(sequence[2:].partition(b";")[0], sequence[-1:])

    def _note_osc(self, number: bytes, value: bytes) -> None:
        if number == b"8":
            self._change(_LAST, number, b"" if value in b"\x07\x1b" else b"\x1b]8;;\x1b\\")
        else:
            self._change(_LAST, number, b"\x1b]1%02d\x1b\\" % int(number))

    def _note_csi(self, private: bytes, parameters: bytes, final: bytes) -> None:
        first, *more = parameters.split(b";")
        match private, final:
            case ((b"" | b"?"), (b"h" | b"l")):
                for mode in (first, *more):
                    self._switch(private + mode, final)
            case b"", b"r":  # it moves the cursor
                undo = b"\x1b[r" if self._on_other_screen() else b"\x1b7\x1b[r\x1b8"
                self._change(_REGION, b"r", undo if parameters.strip(b";") else b"")
            case b"", b" q":
                self._change(_MODES, b"q", b"\x1b[0 q" if parameters.strip(b"0") else b"")
            case b"", b"t" if first in (b"22", b"23"):
                which = b"".join(b";" + each for each in more)
                self._push(_MODES, b"t" + which, b"\x1b[23%bt" % which, pops=first == b"23")
            case b">", (b"m" | b"n" | b"f"):
                kind = b"f" if final == b"f" else b"m"
                set_ = final == b"n" or (more and more[0].strip(b"0"))
                self._change(_MODES, b">" + first + kind, b"\x1b[>%b%b" % (first, kind) if set_ else b"")
            case ((b"<" | b"=" | b">"), b"u"):
                self._kitty(private, first)

    def _on_other_screen(self) -> bool:
        return any((_SCREEN, mode) in self._undo for mode in _OTHER_SCREEN)

    def _switch(self, mode: bytes, switch: bytes) -> None:
        before = b"h" if mode in _ON else b"l"
        undo = b"" if switch == before else b"\x1b[%b%b" % (mode, before)
        if mode in _OTHER_SCREEN:
            self._change(_SCREEN, mode, undo)
            if not undo:  # what remains on that screen cannot be reached from here
                self._change(_ALTERNATE, b"u", b"")
                self._change(_ALTERNATE, b"=", b"")
        elif mode == b"?6":  # it moves the cursor
            bottom = b"" if self._on_other_screen() else b"\x1b[9999;1H\n"
            self._change(_REGION, mode, undo and undo + bottom)
        elif mode != _SAVED_CURSOR:
            self._change(_MODES, mode, undo)

    def _kitty(self, act: bytes, flags: bytes) -> None:
        """Note a change of kitty's keyboard protocol. Each screen has its own stack of flags."""
        order = _ALTERNATE if self._on_other_screen() else _MAIN
        if act == b"=":
            self._change(order, b"=", b"\x1b[=0u" if flags.strip(b"0") else b"")
        else:
            self._push(order, b"u", b"\x1b[<u", pops=int(flags or 1) if act == b"<" else 0)

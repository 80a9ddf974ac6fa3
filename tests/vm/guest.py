"""Runs inside the machine: ``guest.py SCENARIO=COUNT ...``; each row goes outside as soon as it is there."""

import sys
import traceback
from collections.abc import Callable, Iterator

import anyio
import anyio.lowlevel

import cells
import consoles
import devices
import inputs
import instruments
import loans
import names
import objects
import unplugs
from outside import Outside, modprobe
from unplugs import Row

SCENARIOS: dict[str, Callable[[Outside, int], Iterator[Row]]] = {
    "ttyUSB": unplugs.cables,
    "ttyACM": unplugs.gadgets,
    "evdev": inputs.evdev,
    "hidraw": inputs.hidraw,
    "replugs": unplugs.replugs,
    "swaps": unplugs.swaps,
    "input-replugs": inputs.replugs,
    "input-swaps": inputs.swaps,
    "stalls": unplugs.stalls,
    "consoles": consoles.rows,
    "devices": devices.rows,
    "instruments": instruments.rows,
    "instruments-as-others": instruments.as_others,
    "names": names.names,
    "objects": objects.objects,
    "loans": loans.rows,
    "answers": cells.answers,
}


def main() -> None:
    outside = Outside()
    modprobe("xhci_pci", "ftdi_sio")
    anyio.run(anyio.lowlevel.checkpoint, backend_options={"use_uvloop": True})  # which opens what it keeps
    for word in sys.argv[1:]:
        scenario, _, count = word.partition("=")
        try:
            for row in SCENARIOS[scenario](outside, int(count)):
                anyio.run(outside.ask, "row", row)
        except Exception:  # noqa: BLE001  # it is told outside, and the next one goes on
            anyio.run(outside.ask, "row", {"scenario": scenario, "right": traceback.format_exc(), "ok": False})
    anyio.run(outside.ask, "ended")


if __name__ == "__main__":
    main()

"""Lanes: many trials of one program at once, in chunks of compiled steps, refilled from a queue.

The engine knows nothing about attacks. A program is a few pure functions of one trial (see `Program`). Each device runs
its own lanes with its own compiled program, one host thread a device, all fed from one queue: a chunk of steps is one
compiled call, and between chunks finished trials are taken out and waiting ones put in. A trial's result does not
depend on its lane, the number of lanes, the chunk length, the order of the queue or the number of devices, beyond the
rounding of the vectorised arithmetic.

    programs.py  the program mapped over lanes, with the loop over steps; traced once, compiled for a device
    lanes.py     the lanes of one device and their thread: finished trials leave, waiting ones enter
    choice.py    the number of lanes: a first guess, then a search
    memory.py    bytes that a lane takes, and bytes that are free
    engine.py    the run: threads, queue, counters, what to do when memory runs out
"""

from jaxleak.engine.engine import Engine, EngineStats
from jaxleak.engine.lanes import Finished
from jaxleak.engine.programs import Program

__all__ = ["Engine", "EngineStats", "Finished", "Program"]

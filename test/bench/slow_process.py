#!/usr/bin/env python3
"""slow_process.py PID SHARE: lets that process run for SHARE (0..1) of each 50 ms, until it or we are ended."""
import os
import signal
import sys
import time

PERIOD_S = 0.05


def main():
    pid, share = int(sys.argv[1]), float(sys.argv[2])

    def leave(*_):
        os.kill(pid, signal.SIGCONT)
        sys.exit(0)

    try:  # or it would be late on a busy machine, and the process run for longer
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
    except OSError:
        pass
    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
    try:
        while True:
            os.kill(pid, signal.SIGCONT)
            time.sleep(PERIOD_S * share)
            os.kill(pid, signal.SIGSTOP)
            time.sleep(PERIOD_S * (1 - share))
    except ProcessLookupError:
        pass


main()

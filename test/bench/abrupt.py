#!/usr/bin/env python3
"""Opens connections to a PostgreSQL server and drops each at some moment of its startup, without a word.

    abrupt.py SOCKET_DIRECTORY PORT COUNT AT_ONCE SEED

Half of them over TCP to 127.0.0.1, which are reset (SO_LINGER 0), half over the Unix socket. Role and database are "bench",
without a password. Some send nothing, or a part of a startup packet, or nonsense; most a complete one, some with a query
behind it. Nobody waits for an answer: how far a connection has come when it is dropped depends on when that is.
Prints how many of each there were.
"""

import collections
import heapq
import random
import socket
import struct
import sys
import time


def packet(body):
    return struct.pack("!I", len(body) + 4) + body


def startup(user, database, application):
    texts = ["user", user, "database", database, "application_name", application]
    return packet(struct.pack("!I", 196608) + b"".join(text.encode() + b"\0" for text in texts) + b"\0")


def query(sql):
    return b"Q" + packet(sql.encode() + b"\0")


COMPLETE = startup("bench", "bench", "abrupt")

# name, share, what is sent
PLANS = [
    ("nothing", 5, lambda: b""),
    ("part of a packet", 10, lambda: COMPLETE[: random.randrange(1, len(COMPLETE))]),
    ("absurd length", 3, lambda: struct.pack("!I", random.choice([0, 3, 8, 10001, 2**31, 2**32 - 1])) + COMPLETE[4:]),
    ("SSL request", 3, lambda: struct.pack("!II", 8, 80877103)),
    ("cancel request", 3, lambda: struct.pack("!IIII", 16, 80877102, random.randrange(1, 2**22), random.getrandbits(32))),
    ("unknown role", 5, lambda: startup("nobody" * random.choice([1, 20]), "bench", "abrupt")),
    ("unknown database", 3, lambda: startup("bench", "nothing", "abrupt")),
    ("long names", 3, lambda: startup("bench", "bench", "x" * 8000)),
    ("startup", 35, lambda: COMPLETE),
    ("startup and query", 25, lambda: COMPLETE + query("SELECT pg_sleep(%.3f)" % random.uniform(0, 0.1))),
    ("startup and goodbye", 5, lambda: COMPLETE + b"X" + packet(b"")),
]


def connect(directory, port):
    if random.random() < 0.5:
        client = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        address = ("127.0.0.1", port)
    else:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        address = f"{directory}/.s.PGSQL.{port}"
    client.connect(address)  # waits while the kernel's queue of connections is full
    return client


def main():
    directory, port, count, at_once, seed = sys.argv[1], *map(int, sys.argv[2:])
    random.seed(seed)
    done = collections.Counter()
    open_clients = []  # (when to drop it, number, socket)
    for number in range(count):
        while len(open_clients) >= at_once or (open_clients and open_clients[0][0] <= time.monotonic()):
            at, _, client = heapq.heappop(open_clients)
            time.sleep(max(0, at - time.monotonic()))
            client.close()
        [(name, _, bytes_to_send)] = random.choices(PLANS, [share for _, share, _ in PLANS])
        client = connect(directory, port)
        try:
            client.sendall(bytes_to_send())
        except OSError:  # the server was the first to go, as it may
            done["refused before it was sent"] += 1
        done[name] += 1
        delay = random.choice([0, random.uniform(0, 0.005), random.uniform(0, 0.05), random.uniform(0, 1)])
        heapq.heappush(open_clients, (time.monotonic() + delay, number, client))
    for _, _, client in open_clients:
        client.close()
    print(f"{count} dropped: " + ", ".join(f"{name} {number}" for name, number in done.most_common()))


main()

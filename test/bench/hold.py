#!/usr/bin/env python3
"""Opens connections to a PostgreSQL server and keeps them until it is killed.

    hold.py SOCKET_DIRECTORY PORT COUNT QUERY

Role and database are "bench", without a password. Each connection asks QUERY once, if it is not empty, and waits for the
answer; without one nobody waits even for the login.
"""

import signal
import socket
import struct
import sys


def packet(body):
    return struct.pack("!I", len(body) + 4) + body


STARTUP = packet(struct.pack("!I", 196608) + b"user\0bench\0database\0bench\0application_name\0hold\0\0")


def await_ready(client):
    """Reads messages to the next ReadyForQuery."""
    data = b""
    while True:
        while len(data) < 5:
            data += receive(client)
        kind, length = data[:1], struct.unpack("!I", data[1:5])[0]
        while len(data) < length + 1:
            data += receive(client)
        data = data[length + 1 :]
        if kind == b"E":
            sys.exit("refused")
        if kind == b"Z":
            return


def receive(client):
    return client.recv(65536) or sys.exit("the server hung up")


def main():
    directory, port, count, query = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
    clients = []
    for _ in range(count):
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.connect(f"{directory}/.s.PGSQL.{port}")
        client.sendall(STARTUP)
        if query:
            await_ready(client)
            client.sendall(b"Q" + packet(query.encode() + b"\0"))
            await_ready(client)
        clients.append(client)
    signal.pause()


main()

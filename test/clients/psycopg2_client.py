"""psycopg2 and its ThreadedConnectionPool, in one case of test/clients/try."""

import os
import sys
import time

import psycopg2
import psycopg2.pool

CASE = sys.argv[1]
GATED = f"host=127.0.0.1 port={os.environ['PGPORT']}"
BOTH = f"host=127.0.0.1,127.0.0.1 port={os.environ['PGPORT']},{os.environ['OTHER_PORT']}"


def report(text):
    print("    " + text.replace("\n", "\n        "))


def attempt(what, action):
    began = time.monotonic()
    try:
        result = f"ok: {action()}"
    except Exception as error:
        result = f"{type(error).__name__}, pgcode {getattr(error, 'pgcode', '-')}\n{str(error).strip()}"
        diag = getattr(error, "diag", None)
        result += f"\ndiag: detail {getattr(diag, 'message_detail', None)!r}, hint {getattr(diag, 'message_hint', None)!r}"
    report(f"{what}: after {time.monotonic() - began:.1f} s: {result}")


def ask(dsn):
    connection = psycopg2.connect(dsn)
    cursor = connection.cursor()
    cursor.execute("SELECT current_setting('cluster_name')")
    name = cursor.fetchone()[0]
    connection.close()
    return name


def transaction(connection):
    """What a program does: the first execute() sends BEGIN, in its own round trip."""
    connection.cursor().execute("SELECT 1")


def refused_transaction():
    pool = psycopg2.pool.ThreadedConnectionPool(1, 2, GATED)
    connection = pool.getconn()
    pid = connection.info.backend_pid
    attempt("execute() in a transaction", lambda: transaction(connection))
    report(f"closed: {connection.closed}, status {connection.info.transaction_status}")
    pool.putconn(connection)
    connection = pool.getconn()
    report(f"the pool gives {'the same' if connection.info.backend_pid == pid else 'another'} connection, closed: {connection.closed}")
    attempt("autocommit", lambda: (setattr(connection, "autocommit", True), transaction(connection)))
    report(f"closed: {connection.closed}")


if CASE in ("error", "fatal"):
    refused_transaction()
elif CASE == "hosts":
    attempt("connect(), host=a,b", lambda: ask(BOTH))
else:
    dsn = GATED + (" connect_timeout=2" if CASE == "impatient" else "")
    attempt("connect()", lambda: ask(dsn))
    attempt("ThreadedConnectionPool(1, 2)", lambda: psycopg2.pool.ThreadedConnectionPool(1, 2, dsn))

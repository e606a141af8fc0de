"""psycopg 3 and psycopg_pool, in one case of test/clients/try."""

import logging
import os
import sys
import time

import psycopg
import psycopg_pool

CASE = sys.argv[1]
GATED = f"host=127.0.0.1 port={os.environ['PGPORT']}"
began = time.monotonic()


def report(text):
    print("    " + text.replace("\n", "\n        "))


def attempt(what, action):
    since = time.monotonic()
    try:
        result = f"ok: {action()}"
    except Exception as error:
        result = f"{type(error).__name__}, sqlstate {getattr(error, 'sqlstate', '-')}\n{str(error).strip()}"
        diag = getattr(error, "diag", None)
        result += f"\ndiag: detail {getattr(diag, 'message_detail', None)!r}, hint {getattr(diag, 'message_hint', None)!r}"
    report(f"{what}: after {time.monotonic() - since:.1f} s: {result}")


class Moments(logging.Handler):
    """When the pool's background worker failed to connect."""

    def emit(self, record):
        first = record.getMessage().splitlines()[0]
        report(f"pool's log at {time.monotonic() - began:.1f} s: {first[:100]}")


def ask(dsn):
    with psycopg.connect(dsn) as connection:
        return connection.execute("SELECT current_setting('cluster_name')").fetchone()[0]


def ask_pool(pool):
    with pool.connection() as connection:
        connection.execute("SELECT 1")
        return f"backend {connection.info.backend_pid}"


def refused_transaction():
    with psycopg_pool.ConnectionPool(GATED, min_size=1, max_size=1, timeout=4) as pool:
        connection = pool.getconn()
        pid = connection.info.backend_pid
        attempt("execute() in a transaction", lambda: connection.execute("SELECT 1"))
        report(f"closed: {connection.closed}, status {connection.info.transaction_status.name}")
        pool.putconn(connection)
        connection = pool.getconn()
        report(f"the pool gives {'the same' if connection.info.backend_pid == pid else 'another'} connection")
        connection.autocommit = True
        attempt("autocommit", lambda: connection.execute("SELECT 1"))
        report(f"closed: {connection.closed}")
        pool.putconn(connection)


if CASE in ("error", "fatal"):
    refused_transaction()
else:
    dsn = GATED + (" connect_timeout=2" if CASE == "impatient" else "")
    attempt("connect()", lambda: ask(dsn))
    logger = logging.getLogger("psycopg.pool")
    logger.addHandler(Moments())
    logger.propagate = False
    began = time.monotonic()
    pool = psycopg_pool.ConnectionPool(dsn, min_size=1, max_size=1, timeout=4)
    attempt("ConnectionPool(timeout=4), connection()", lambda: ask_pool(pool))
    pool.close(timeout=1)

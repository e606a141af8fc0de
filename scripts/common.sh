# shellcheck shell=bash
# What the demo, the checks and the benchmarks share: a PostgreSQL of their own, in a temporary directory. Nothing of the
# machine's own installation, clusters, ports or extensions is touched. Source it, and call in this order:
#
#   begin_work                 $work: a temporary directory, which end_work removes (call it in your EXIT trap)
#   make_prefix                $prefix: a copy of the machine's PostgreSQL with pg_weir built and installed into it; first in PATH.
#                              Fails if pg_weir does not build
#   start_server NAME LINE...  a fresh server in $work/NAME with these lines at the end of its postgresql.conf; superuser
#                              $superuser; Unix socket only, in that directory: ${server_port[NAME]}; log in $work/NAME/log
#   stop_server NAME           stops it, immediately
#   as_server COMMAND...       runs it as the user that the servers run as: initdb refuses root
#   give_to_server PATH        makes that user its owner
#   bouncer_path               prints the newest PgBouncer that can be had: from Debian 13, else this machine's
#
# As root the servers run as user postgres, else as whoever you are.

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
pg_major=15
pg_config=/usr/lib/postgresql/$pg_major/bin/pg_config
superuser=postgres
declare -A server_port=()
next_port=7100
work='' prefix=''

# In /tmp where TMPDIR is closed to the servers' user, or too long for the name of a socket.
begin_work() {
    local parent=${TMPDIR:-/tmp}
    { [ ${#parent} -le 40 ] && as_server test -x "$parent"; } || parent=/tmp
    export TMPDIR=$parent # for pg_regress and the like
    work=$(mktemp -d "$parent/pg_weir.XXXXXX")
    chmod 755 "$work"
}

# What a test that was ended left behind: it runs from our own prefix, as nothing else does.
end_servers_left() {
    local process found
    for _ in $(seq 50); do
        found=
        for process in /proc/[0-9]*; do
            case $(readlink "$process/exe") in
                "$work"/prefix/*/postgres) found=1 && { kill -QUIT "${process#/proc/}" 2>/dev/null || true; } ;;
            esac
        done
        [ -n "$found" ] || return 0
        sleep 0.1
    done
}

end_work() {
    local name
    for name in "${!server_port[@]}"; do
        stop_server "$name" || true
    done
    [ -n "$work" ] || return 0
    end_servers_left
    rm -rf "$work"
}

# The current directory may be closed to the servers' user, and initdb does not find its way without one.
if [ "$(id -u)" = 0 ]; then
    as_server() { runuser -u postgres -- env -C "${work:-/}" "$@"; }
    give_to_server() { chown -R postgres "$1"; }
else
    as_server() { env -C "${work:-/}" "$@"; }
    give_to_server() { :; }
fi

# PostgreSQL finds its files relative to its programs, so a copy of both trees under a new root is a whole installation.
make_prefix() {
    local bin="usr/lib/postgresql/$pg_major/bin"
    prefix=$work/prefix
    mkdir -p "$prefix/usr/lib/postgresql" "$prefix/usr/share/postgresql"
    cp -a "/usr/lib/postgresql/$pg_major" "$prefix/usr/lib/postgresql/"
    cp -a "/usr/share/postgresql/$pg_major" "$prefix/usr/share/postgresql/"
    # Built in a copy, whatever objects of whichever compiler, server or user the working tree has.
    mkdir "$work/build"
    cp -a "$repository"/{Makefile,src,extension} "$work/build/"
    make -s -C "$work/build" PG_CONFIG="$pg_config" clean &&
        make -s -j2 -C "$work/build" PG_CONFIG="$pg_config" &&
        make -s -C "$work/build" PG_CONFIG="$pg_config" install DESTDIR="$prefix" || return 1
    export PATH="$prefix/$bin:$PATH"
}

start_server() {
    local name=$1 directory=$work/$1
    shift
    mkdir "$directory"
    give_to_server "$directory"
    as_server initdb -D "$directory/data" -U "$superuser" -A trust -E UTF8 --no-locale >"$directory.initdb" 2>&1 ||
        { cat "$directory.initdb" >&2 && return 1; }
    next_port=$((next_port + 1))
    server_port[$name]=$next_port
    printf '%s\n' "listen_addresses = ''" "unix_socket_directories = '$directory'" "port = $next_port" \
        "max_connections = 1100" "shared_buffers = 256MB" "max_wal_size = 4GB" "$@" |
        as_server tee -a "$directory/data/postgresql.conf" >/dev/null
    as_server pg_ctl -D "$directory/data" -l "$directory/log" -w start >"$directory.start" 2>&1 ||
        { cat "$directory.start" "$directory/log" >&2 && return 1; }
}

# start_copy NAME PRIMARY LINE...: a standby from a base backup.
start_copy() {
    local name=$1 primary=$2 directory=$work/$1
    shift 2
    mkdir "$directory"
    give_to_server "$directory"
    as_server pg_basebackup -D "$directory/data" -h "$work/$primary" -p "${server_port[$primary]}" -U "$superuser" -c fast -R >"$directory.backup" 2>&1 ||
        { cat "$directory.backup" >&2 && return 1; }
    next_port=$((next_port + 1))
    server_port[$name]=$next_port
    printf '%s\n' "unix_socket_directories = '$directory'" "port = $next_port" "$@" |
        as_server tee -a "$directory/data/postgresql.conf" "$directory/data/postgresql.auto.conf" >/dev/null
    as_server pg_ctl -D "$directory/data" -l "$directory/log" -w start >"$directory.start" 2>&1 ||
        { cat "$directory.start" "$directory/log" >&2 && return 1; }
}

stop_server() {
    as_server pg_ctl -D "$work/$1/data" -w -m immediate stop >/dev/null 2>&1
    unset "server_port[$1]"
}

bouncer_path() {
    "$repository/scripts/pgbouncer-trixie" 2>/dev/null || command -v pgbouncer || echo /usr/sbin/pgbouncer
}

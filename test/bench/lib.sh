# shellcheck shell=bash
# The systems under test, side by side on one machine: throw-away servers with and without the library, and PgBouncer.
# Sourced by every benchmark and by scripts/demo.
#
#   begin_systems                      prefix and work directory ($work); everything is removed at exit
#   start_system NAME SCALE [LINE...]  a server with database and ordinary role "bench"; with the library if NAME is weir; LINE
#                                      as in start_server
#   restart_system NAME [VARIABLE=VALUE...]   with these in the server's environment
#   start_standby NAME PRIMARY [LINE...]   a streaming standby of that server
#   start_bouncer SYSTEM POOL          PgBouncer in transaction mode before that server, as system "pgbouncer"
#   use SYSTEM                         where pgbench connects to from now on, as role "bench": superusers pass every gate
#   choose plain|pgbouncer|adaptive|"limit N"    the same, and the limit of the server with the library
#   admin SYSTEM SQL...                as superuser, a transaction each
#   set_weir NAME VALUE...             change settings of the server with the library while it runs
#   pause SECONDS                      a sleep that a signal's trap can end

set -euo pipefail

bench_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=../../scripts/common.sh
. "$bench_dir/../../scripts/common.sh"
# shellcheck source-path=SCRIPTDIR source=measure.sh
. "$bench_dir/measure.sh"
# shellcheck source-path=SCRIPTDIR source=report.sh
. "$bench_dir/report.sh"

declare -A system_database=()
protocol=prepared
bouncer_program='' bouncer_version='' bouncer_pool='' bouncer_pid='' bouncer_port=6432

pause() {
    local sleeper
    sleep "$1" &
    sleeper=$!
    wait "$sleeper" || true
}

minus() {
    awk -v a="$1" -v b="$2" 'BEGIN { printf "%.3f\n", a - b }'
}

begin_systems() {
    trap end_systems EXIT
    prepare_systems
}

prepare_systems() {
    # pgbench and PgBouncer hold a descriptor per client.
    ulimit -n 8192 2>/dev/null || ulimit -n "$(ulimit -Hn)"
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    begin_work
    make_prefix
    find_bouncer
}

end_systems() {
    trap '' INT TERM HUP
    stop_all_pgbench
    stop_all_logins
    stop_bouncer
    end_work
}

# end_bench: the report's end, and failure if anything was left behind.
end_bench() {
    local leaked=0
    report_leaks || leaked=1
    end_report
    return "$leaked"
}

start_system() {
    local system=$1 scale=$2 settings=("${@:3}")
    [ "$system" != weir ] || settings+=("shared_preload_libraries = 'pg_weir'" "weir.mode = 'enforce'")
    start_server "$system" "${settings[@]}"
    system_database[$system]=postgres
    admin "$system" "CREATE ROLE bench LOGIN" "CREATE DATABASE bench OWNER bench"
    system_database[$system]=bench
    [ "$system" != weir ] || admin "$system" "CREATE EXTENSION pg_weir"
    use "$system"
    pgbench -i -q -s "$scale" >"$work/init.log" 2>&1 || { cat "$work/init.log" >&2 && return 1; }
}

restart_system() {
    local name=$1
    shift
    as_server pg_ctl -D "$work/$name/data" -w -m fast stop >/dev/null
    as_server env "$@" pg_ctl -D "$work/$name/data" -l "$work/$name/log" -w start >"$work/$name.start" 2>&1 ||
        { cat "$work/$name.start" >&2 && return 1; }
}

# processor_ticks SERVER: what its processes have taken so far, those that have ended included.
processor_ticks() {
    local postmaster
    postmaster=$(head -n 1 "$work/$1/data/postmaster.pid")
    pgrep -P "$postmaster" | sed 's:.*:/proc/&/stat:' | { xargs cat "/proc/$postmaster/stat" 2>/dev/null || true; } |
        awk '{ ticks += $14 + $15 + $16 + $17 } END { print ticks }'
}

# processor_us SERVER TICKS COUNT: what they have taken since there were that many, in µs, for each of COUNT.
processor_us() {
    awk -v ticks="$(minus "$(processor_ticks "$1")" "$2")" -v hz="$(getconf CLK_TCK)" -v count="$3" 'BEGIN { printf "%.1f", 1e6 * ticks / hz / count }'
}

start_standby() {
    local name=$1 primary=$2
    shift 2
    start_copy "$name" "$primary" "primary_conninfo = 'host=$work/$primary port=${server_port[$primary]} user=$superuser application_name=$name'" "$@"
    system_database[$name]=${system_database[$primary]}
    wait_caught_up "$name" "$primary"
}

# wait_caught_up STANDBY PRIMARY: until the standby has replayed what the primary has written by now.
wait_caught_up() {
    local lsn
    lsn=$(admin "$2" "SELECT pg_current_wal_lsn()")
    until [ "$(admin "$1" "SELECT pg_last_wal_replay_lsn() >= '$lsn'")" = t ]; do
        pause 0.02
    done
}

# server_of SYSTEM: the server behind what a table calls by another name.
server_of() {
    case $1 in
        pgbouncer) echo plain ;;
        adaptive | limit\ *) echo weir ;;
        *) echo "$1" ;;
    esac
}

use() {
    export PGHOST=$work/$1 PGPORT=${server_port[$1]:-$bouncer_port} PGUSER=bench PGDATABASE=bench
}

choose() {
    case $1 in
        adaptive) set_weir weir.max_active -1 ;;
        limit\ *) set_weir weir.max_active "${1#limit }" ;;
    esac
    case $1 in
        pgbouncer) use pgbouncer ;;
        *) use "$(server_of "$1")" ;;
    esac
}

admin() {
    local server=$1 statements=() sql
    shift
    for sql in "$@"; do
        statements+=(-c "$sql")
    done
    admin_session "$server" "${statements[@]}"
}

# admin_session SYSTEM ARGS...: psql as superuser, with its own arguments or reading its input.
admin_session() {
    local server
    server=$(server_of "$1")
    shift
    psql -XAtq -v ON_ERROR_STOP=1 -h "$work/$server" -p "${server_port[$server]}" -U "$superuser" \
        -d "${system_database[$server]}" "$@"
}

# set_weir: returns when a new session sees the values; the launcher was told in the same moment.
set_weir() {
    local statements=() seen="SELECT true" tries=0
    while [ $# -gt 0 ]; do
        statements+=("ALTER SYSTEM SET $1 = '$2'")
        seen+=" AND current_setting('$1') = '$2'"
        shift 2
    done
    admin weir "${statements[@]}" "SELECT pg_reload_conf()" >/dev/null
    until [ "$(admin weir "$seen")" = t ]; do
        tries=$((tries + 1))
        [ "$tries" -lt 50 ] || { echo "settings did not arrive: ${statements[*]}" >&2 && return 1; }
        pause 0.1
    done
    pause 0.2
}

# freshen SYSTEM: dead versions of the hot rows, history and dirty pages of the last run are not the next one's burden.
freshen() {
    admin "$1" "VACUUM pgbench_branches" "VACUUM pgbench_tellers" "TRUNCATE pgbench_history" "CHECKPOINT"
}

# await_quiet SYSTEM: until the last run's sessions are gone; pgbench does not wait for them.
await_quiet() {
    local tries=0 others
    others="SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    until [ "$(admin "$1" "$others")" = 0 ]; do
        tries=$((tries + 1))
        [ "$tries" -lt 300 ] || { echo "$1: sessions do not go away" >&2 && return 1; }
        pause 0.1
    done
}

# report_leaks: nobody is connected, so nobody may hold or want a slot, nor a place among those who start. Connections that
# wait are not in pg_stat_activity, and a second is granted them to see that their client has left: hence the patience.
report_leaks() {
    local left tries=0
    await_quiet weir || return 1
    until left=$(admin weir "SELECT a.active, a.waiting, a.lent, sum(s.starting), sum(s.waiting)
            FROM weir.stat_admission a, weir.stat_startup s GROUP BY 1, 2, 3") && [ "$left" = "0|0|0|0|0" ]; do
        tries=$((tries + 1))
        [ "$tries" -lt 50 ] || break
        pause 0.1
    done
    say "left behind (active|waiting|lent, connections starting|waiting): $left"
    [ "$left" = "0|0|0|0|0" ]
}

# find_bouncer: a PgBouncer that keeps prepared statements in transaction mode (1.21) if there is one; else every system is
# driven with the simple protocol, because a comparison of protocols is not wanted.
find_bouncer() {
    bouncer_program=$(bouncer_path)
    bouncer_version=$("$bouncer_program" --version | awk '{ print $2; exit }')
    if [ "$(printf '1.21\n%s\n' "$bouncer_version" | sort -V | head -n 1)" = 1.21 ]; then
        protocol=prepared
    else
        protocol=simple
    fi
}

start_bouncer() {
    local server=$1 pool=$2 dir=$work/pgbouncer tries=0 prepared=
    stop_bouncer
    rm -rf "$dir"
    mkdir "$dir"
    [ "$protocol" = simple ] || prepared="max_prepared_statements = 200"
    echo '"bench" ""' >"$dir/users"
    cat >"$dir/ini" <<INI
[databases]
bench = host=$work/$server port=${server_port[$server]} dbname=bench
[pgbouncer]
unix_socket_dir = $dir
listen_port = $bouncer_port
auth_type = trust
auth_file = $dir/users
pool_mode = transaction
default_pool_size = $pool
max_client_conn = 2000
listen_backlog = 2000
logfile = $dir/log
pidfile = $dir/pid
$prepared
INI
    give_to_server "$dir"
    as_server "$bouncer_program" -q "$dir/ini" >"$dir/err" 2>&1 &
    bouncer_pid=$!
    until [ -S "$dir/.s.PGSQL.$bouncer_port" ]; do
        tries=$((tries + 1))
        [ "$tries" -lt 100 ] || { cat "$dir/err" "$dir/log" >&2 && return 1; }
        pause 0.1
    done
    bouncer_pool=$pool
}

stop_bouncer() {
    [ -n "$bouncer_pid" ] || return 0
    # Its own pid: the job's is that of the shell that changed the user.
    kill "$(cat "$work/pgbouncer/pid")" 2>/dev/null || true
    wait "$bouncer_pid" 2>/dev/null || true
    bouncer_pid=
}

# start_best_bouncer SERVER POOLS CLIENTS SECONDS ARGS...: the pool size that does best in a short try of each.
start_best_bouncer() {
    local server=$1 pools=$2 clients=$3 seconds=$4 pool tps best=0
    shift 4
    for pool in $pools; do
        start_bouncer "$server" "$pool"
        use pgbouncer
        run_pgbench "$work/run" "$clients" "$seconds" -M "$protocol" "$@"
        tps=$(tps_between "$work/run" 2)
        say "PgBouncer $bouncer_version, pool $pool: $tps tps in a try of $seconds s"
        if [ "$(largest "$tps" "$best")" = "$tps" ]; then best=$tps best_pool=$pool; fi
    done
    start_bouncer "$server" "$best_pool"
}

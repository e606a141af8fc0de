# shellcheck shell=bash
# PostgreSQL's own regression and isolation suites, with pg_weir enforcing a limit of two: groups of 20 sessions then really
# queue. Sourced by scripts/check; the source is Debian's, of the version that is installed.
#
# What is set, and why:
#   weir.superuser_bypass = off   the suites run as superuser
#   compute_query_id = regress    pg_weir asks for query identifiers, which EXPLAIN (VERBOSE) would print; this value is the
#                                 server's own way to keep them out of expected output
#   max_prepared_transactions     the suites expect it, as PostgreSQL's own build sets it for them
#
# Debian's archive keeps the source of the newest point release only, and not every mirror that of a security update: then the suite
# is of another point release than the server. So each suite first runs without pg_weir. What a test prints there is what it
# must print with pg_weir, and the log names each test whose own expectation it did not meet without pg_weir. There is no list of
# exceptions: a test that differs with pg_weir alone has failed.

suites_source() {
    local version directory
    version=$(dpkg-query -W -f '${Version}' "postgresql-$pg_major")
    directory=$(cache_directory)/postgresql-source-$version
    if ! find_source "$directory"; then
        fetch_source bookworm "$directory" "postgresql-$pg_major" "$version" >"$work/source.log" 2>&1
        find_source "$directory"
    fi
}

find_source() {
    local found
    for found in "$1"/postgresql-*/src; do
        [ -d "$found" ] || return 1
        dirname "$found"
    done
}

suites_conf() {
    printf '%s\n' "compute_query_id = regress" "max_prepared_transactions = 10" "max_connections = 60" \
        "log_min_messages = warning" >"$work/plain.conf"
    { cat "$work/plain.conf" && printf '%s\n' "shared_preload_libraries = 'pg_weir'" "weir.mode = enforce" \
        "weir.max_active = 2" "weir.superuser_bypass = off"; } >"$work/weir.conf"
}

# run_suite DIRECTORY CONF LOG PROGRAM ARGS...
run_suite() {
    local directory=$1 conf=$2 log=$3 program=$4
    shift 4
    (cd "$directory" && as_server rm -rf instance log results && as_server timeout --foreground -k 10 900 env PATH="$PATH:$pgxs/src/test/isolation" LC_ALL=C \
        "$program" --inputdir="$directory" --outputdir="$directory" --bindir="$prefix/usr/lib/postgresql/$pg_major/bin" \
        --temp-instance="$directory/instance" --temp-config="$conf" --max-concurrent-tests=20 "$@") >"$log" 2>&1
}

# adopt_plain_results DIRECTORY LOG: of the tests that fail without pg_weir.
adopt_plain_results() {
    local test
    for test in $(sed -nE 's/^(test)? +([a-z0-9_.-]+) +\.\.\. FAILED.*/\2/p' "$2"); do
        say "without pg_weir already: $test does not print what its source expects"
        rm -f "$1/expected/$test"_?.out
        cp "$1/results/$test.out" "$1/expected/$test.out"
    done
}

# suite WHAT SOURCE_DIRECTORY PROGRAM ARGS...
suite() {
    local what=$1 source=$2 status directory
    directory=$work/$(basename "$source")
    shift 2
    cp -a "$source" "$directory"
    give_to_server "$directory"
    run_suite "$directory" "$work/plain.conf" "$directory.plain.log" "$@"
    adopt_plain_results "$directory" "$directory.plain.log"
    give_to_server "$directory/expected"
    run_suite "$directory" "$work/weir.conf" "$directory.log" "$@"
    status=$?
    [ ! -e "$directory/regression.diffs" ] || tail -n 200 "$directory/regression.diffs" >>"$directory.log"
    count_regress "$what" "$directory.log" "$status"
    # A crash would show as failed tests; what a test cannot see would show here.
    one "$what: no crash, no leaked snapshot" check_server_log "$directory/log/postmaster.log"
}

check_server_log() {
    ! grep -E 'PANIC|TRAP|was terminated by signal|snapshot .* still active|resource was not closed|leaked' "$1"
}

suites_group() {
    local source tests
    if ! source=$(suites_source); then
        tail -n 5 "$work/source.log"
        skip "suites: the source of PostgreSQL cannot be had"
        return
    fi
    suites_conf
    tests=$source/src/test/regress
    # Debian does not ship the C functions that the suite needs.
    mkdir -p "$work/dl"
    cp "$prefix/usr/lib/postgresql/$pg_major/lib"/{autoinc,refint}.so "$work/dl/"
    gcc -O1 -w -fPIC -shared -I"$("$pg_config" --includedir-server)" -o "$work/dl/regress.so" "$tests/regress.c" || return 1
    suite "PostgreSQL regression" "$tests" "$pgxs/src/test/regress/pg_regress" --port=7003 --dlpath="$work/dl" \
        --schedule="$tests/parallel_schedule"
    suite "PostgreSQL isolation" "$source/src/test/isolation" "$pgxs/src/test/isolation/pg_isolation_regress" --port=7004 \
        --schedule="$source/src/test/isolation/isolation_schedule"
}

suites_group

# shellcheck shell=bash
# Running pgbench and reading what it measured. Sourced by the benchmarks and by scripts/demo.
#
# A run is a directory: `out` holds pgbench's words, each line behind the epoch at which it came; `log.*` its
# per-transaction log, if the run was started with -l. Times within a run are seconds since all clients were connected,
# which is where pgbench's progress report counts from. Its -T, however, counts from the launch, and after it the
# transactions in flight are still finished and reported: so a run is given time to connect, and what is measured ends
# with load_end, not with the last line.

export LC_ALL=C

declare -A pgbench_pids=() pgbench_readers=()

stamp_lines() {
    local line
    while IFS= read -r line; do
        printf '%s %s\n' "$EPOCHREALTIME" "$line"
    done
}

# start_pgbench RUN CLIENTS SECONDS ARGS...: SECONDS of load by all clients. In the background, because bash runs no trap
# while it waits for a foreground command.
#
# A thread per client, unless THREADS says otherwise: real clients do not wait for one another. A pgbench thread that drives
# 500 sockets looks at all of them for each answer, while the transaction that it has to go on with holds its locks; and its
# PQprepare blocks the whole thread, so that -M prepared through PgBouncer waits for a connection that it holds itself.
start_pgbench() {
    local run=$1 clients=$2 duration=$(($3 + 1 + $2 / 400)) threads=${THREADS:-$2} log_prefix=()
    shift 3
    [ "$threads" -le "$clients" ] || threads=$clients
    mkdir -p "$run"
    rm -f "$run"/log.* "$run"/out "$run"/pipe
    mkfifo "$run/pipe"
    case " $* " in *" -l "*) log_prefix=(--log-prefix="$run/log") ;; esac
    stamp_lines <"$run/pipe" >"$run/out" &
    pgbench_readers[$run]=$!
    echo "$EPOCHREALTIME $duration" >"$run/launch"
    pgbench -n -P 1 -c "$clients" -j "$threads" -T "$duration" "${log_prefix[@]}" "$@" >"$run/pipe" 2>&1 &
    pgbench_pids[$run]=$!
}

# wait_pgbench RUN: fails when pgbench could not run at all; clients that were refused on the way are counted, not fatal.
wait_pgbench() {
    local run=$1 status=0
    wait "${pgbench_pids[$run]}" || status=$?
    wait "${pgbench_readers[$run]}" || true
    unset "pgbench_pids[$run]" "pgbench_readers[$run]"
    if [ "$status" != 0 ] && ! { [ "$status" = 2 ] && grep -q 'progress:' "$run/out"; }; then
        echo "pgbench failed (exit $status):" >&2
        tail -n 5 "$run/out" >&2
        return 1
    fi
}

run_pgbench() {
    start_pgbench "$@"
    wait_pgbench "$1"
}

# stop_pgbench RUN [SIGNAL]: end a load early. Its progress so far can be read, its log and its summary are incomplete.
stop_pgbench() {
    kill -s "${2:-TERM}" "${pgbench_pids[$1]}" 2>/dev/null || true
    wait "${pgbench_pids[$1]}" "${pgbench_readers[$1]}" 2>/dev/null || true
    unset "pgbench_pids[$1]" "pgbench_readers[$1]"
}

stop_all_pgbench() {
    local run
    for run in "${!pgbench_pids[@]}"; do
        stop_pgbench "$run"
    done
}

# start_epoch RUN: when the clients were all connected. A progress line can come late, never early: so the earliest.
start_epoch() {
    awk '$2 == "progress:" { t = $1 - $3; if (!n++ || t < first) first = t } END { printf "%.3f\n", first }' "$1/out"
}

# load_end RUN: the second of the run at which clients began no more transactions.
load_end() {
    awk -v t0="$(start_epoch "$1")" '{ printf "%.2f\n", $1 + $2 - t0 }' "$1/launch"
}

# tps_between RUN FROM [TO]: mean throughput over that part of the run, at most to its load_end.
tps_between() {
    awk -v from="$2" -v to="${3:-1e9}" -v end="$(load_end "$1")" '
        BEGIN { if (end < to) to = end }
        $2 == "progress:" {
            if ($3 > from && $3 <= to) { done += $5 * ($3 - last); time += $3 - last }
            last = $3
        }
        END { printf "%.1f\n", time ? done / time : 0 }' "$1/out"
}

# warmup_seconds RUN STEADY_TPS: the first second whose three-second mean has reached 80 % of the steady throughput.
warmup_seconds() {
    awk -v steady="$2" '
        $2 == "progress:" {
            tps[++n] = $5
            mean = n < 3 ? 0 : (tps[n] + tps[n - 1] + tps[n - 2]) / 3
            if (!at && mean >= 0.8 * steady) at = $3
        }
        END { if (at) printf "%d\n", at - 2; else print "-" }' "$1/out"
}

# clients_refused RUN: clients that pgbench gave up because of an error.
clients_refused() {
    grep -c 'client [0-9]* \(script [0-9]* \)\?aborted' "$1/out" || true
}

# latency_percentiles RUN FROM P...: in milliseconds, over the transactions that ended after second FROM. Those still in
# flight when the load ended are among them: they waited longest.
latency_percentiles() {
    local run=$1 from=$2 sorted=$1/latencies
    shift 2
    awk -v since="$(start_epoch "$run")" -v from="$from" \
        '$3 ~ /^[0-9]+$/ && $5 + $6 / 1e6 >= since + from { print $3 / 1000 }' "$run"/log.* | sort -n >"$sorted"
    awk -v wanted="$*" '
        BEGIN { n = split(wanted, p, " ") }
        { value[NR] = $1 }
        END {
            for (i = 1; i <= n; i++) {
                rank = p[i] / 100 * NR
                rank = rank == int(rank) ? rank : int(rank) + 1
                printf "%s%s", (NR ? sprintf("%.1f", value[rank < 1 ? 1 : rank]) : "-"), (i < n ? " " : "\n")
            }
        }' "$sorted"
}

# log_series RUN: a line per full second of load: second, transactions, p50 and p99 in milliseconds.
log_series() {
    awk -v t0="$(start_epoch "$1")" -v end="$(load_end "$1")" '
        $3 ~ /^[0-9]+$/ { t = $5 + $6 / 1e6 - t0; if (t < int(end)) print (t < 0 ? 0 : int(t)), $3 / 1000 }' "$1"/log.* | sort -k1,1n -k2,2n | awk '
        function flush() {
            if (n) print second + 1, n, value[int((n + 1) / 2)], value[int(n * 0.99 + 0.999)]
        }
        $1 != second { flush(); n = 0; second = $1 }
        { value[++n] = $2 }
        END { flush() }'
}

# median FIGURES...: "-" stands for a figure that there was not.
median() {
    tr -s ' ' '\n' <<<"$*" | sort -n | awk '
        /[0-9]/ { v[++n] = $1 }
        END { if (!n) print "-"; else print n % 2 ? v[(n + 1) / 2] : (v[n / 2] + v[n / 2 + 1]) / 2 }'
}

ratio() {
    awk -v a="$1" -v b="$2" 'BEGIN { if (b + 0 > 0) printf "%.3f\n", a / b; else print "-" }'
}

largest() {
    printf '%s\n' "$@" | sort -n | tail -n 1
}

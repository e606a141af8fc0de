# shellcheck shell=bash
# Running pgbench and reading what it measured. Sourced by the benchmarks and by scripts/demo.
#
# A run is a directory: `out` holds pgbench's words, each line behind the epoch at which it came; `log.*` its
# per-transaction log, if the run was started with -l. Times within a run are seconds since all clients were connected,
# which is where pgbench's progress report counts from. Its -T, however, counts from the launch, and after it the
# transactions in flight are still finished and reported: so a run is given time to connect, and what is measured ends
# with load_end, not with the last line.

export LC_ALL=C

declare -A pgbench_pids=() pgbench_readers=() logins_pids=()
logins_program=''

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

# build_logins PROGRAM: a storm's clients; logins.cpp says why not pgbench -C.
build_logins() {
    logins_program=$1
    g++ -O2 -std=gnu++17 -o "$logins_program" "$(dirname "${BASH_SOURCE[0]}")/logins.cpp"
}

# start_logins RUN ARGS...: logins.cpp says which.
start_logins() {
    local run=$1
    shift
    mkdir -p "$run"
    echo "$EPOCHREALTIME" >"$run/logins.began"
    "$logins_program" "$@" >"$run/logins" 2>"$run/logins.errors" &
    logins_pids[$run]=$!
}

# wait_logins RUN: leaves what they measured in $run/logins; attempts that failed are counted, not fatal.
wait_logins() {
    local status=0
    wait "${logins_pids[$1]}" || status=$?
    unset "logins_pids[$1]"
    [ -s "$1/logins" ] || { echo "logins failed (exit $status):" >&2 && head -n 5 "$1/logins.errors" >&2 && return 1; }
    sort "$1/logins.errors" | uniq -c | head -n 5 >&2
}

run_logins() {
    start_logins "$@"
    wait_logins "$1"
}

# logins_figure RUN NAME
logins_figure() {
    local served refused failed unserved seconds rate p50 p99 max
    # shellcheck disable=SC2034
    read -r served refused failed unserved seconds rate p50 p99 max <"$1/logins"
    echo "${!2}"
}

stop_all_logins() {
    local run
    for run in "${!logins_pids[@]}"; do
        kill "${logins_pids[$run]}" 2>/dev/null || true
        wait "${logins_pids[$run]}" 2>/dev/null || true
        unset "logins_pids[$run]"
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

# processed RUN: transactions of the whole run.
processed() {
    sed -n 's/.*number of transactions actually processed: \([0-9]*\).*/\1/p' "$1/out"
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
    local run=$1 from=$2
    shift 2
    latencies_between "$run" "$(sum "$(start_epoch "$run")" "$from")" 1e12 >"$run/latencies"
    percentiles_of "$run/latencies" "$@"
}

# latencies_between RUN FROM_EPOCH TO_EPOCH: in milliseconds, sorted, of the transactions that ended between.
latencies_between() {
    awk -v from="$2" -v to="$3" \
        '$3 ~ /^[0-9]+$/ { t = $5 + $6 / 1e6; if (t >= from && t < to) print $3 / 1000 }' "$1"/log.* | sort -n
}

# percentiles_of FILE P...: of its sorted numbers.
percentiles_of() {
    local sorted=$1
    shift
    awk -v wanted="$*" '
        function decimals(v) { return sprintf(v < 10 ? "%.3f" : "%.1f", v) }
        BEGIN { n = split(wanted, p, " ") }
        { value[NR] = $1 }
        END {
            for (i = 1; i <= n; i++) {
                rank = p[i] / 100 * NR
                rank = rank == int(rank) ? rank : int(rank) + 1
                printf "%s%s", (NR ? decimals(value[rank < 1 ? 1 : rank]) : "-"), (i < n ? " " : "\n")
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

sum() {
    awk -v a="$1" -v b="$2" 'BEGIN { printf "%.6f\n", a + b }'
}

ratio() {
    awk -v a="$1" -v b="$2" 'BEGIN { if (b + 0 > 0) printf "%.3f\n", a / b; else print "-" }'
}

largest() {
    printf '%s\n' "$@" | sort -n | tail -n 1
}

# shellcheck shell=bash
# A benchmark's printed record: every round, medians and ratios, and where and when. Sourced by lib.sh.

# figures[SYSTEM] holds one figure a round, blank-separated; "-" where there was none.
declare -A figures=()

say() {
    printf '%s\n' "$*" | tee -a "${result_file:-/dev/null}"
}

begin_report() {
    local results
    results=$(dirname "${BASH_SOURCE[0]}")/results
    mkdir -p "$results"
    result_file=$results/$1.txt
    say ""
    say "== $1: $2"
}

add_figure() {
    figures[$1]="${figures[$1]:+${figures[$1]} }$2"
}

clear_figures() {
    figures=()
}

# report_figures TITLE BASE SYSTEM...: a row a system. "ratio" is that of the medians against BASE; "pairs" the median of the
# ratios of figures of the same round, which a host whose speed drifts disturbs less.
report_figures() {
    local title=$1 base=$2 system middle against
    shift 2
    against=$(median "${figures[$base]}")
    say ""
    say "$(printf '%-22s %10s %7s %7s  %s' "$title" median ratio pairs rounds)"
    for system in "$@"; do
        middle=$(median "${figures[$system]}")
        say "$(printf '%-22s %10s %7s %7s  %s' "$system" "$middle" "$(ratio "$middle" "$against")" \
            "$(pair_ratio "$system" "$base")" "${figures[$system]}")"
    done
}

# pair_ratio SYSTEM BASE: the median over the rounds of SYSTEM's figure divided by BASE's.
pair_ratio() {
    local mine theirs i ratios=()
    read -ra mine <<<"${figures[$1]}"
    read -ra theirs <<<"${figures[$2]}"
    for i in "${!mine[@]}"; do
        ratios+=("$(ratio "${mine[i]}" "${theirs[i]:-0}")")
    done
    median "${ratios[@]}"
}

# best_of SYSTEM...: the one with the largest median.
best_of() {
    local system
    for system in "$@"; do
        printf '%s %s\n' "$(median "${figures[$system]}")" "$system"
    done | sort -n | tail -n 1 | cut -d' ' -f2-
}

end_report() {
    say ""
    say "$(nproc) cores ($(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)), $(
        awk '/MemTotal/ { printf "%.0f GB", $2 / 1048576 }' /proc/meminfo), Linux $(uname -r), $(
        postgres --version | awk '{ print "PostgreSQL " $3 }'), pg_weir $(
        git -C "$(dirname "${BASH_SOURCE[0]}")" describe --always --dirty 2>/dev/null || echo '?'); $(
        date -u '+%Y-%m-%d %H:%M UTC')"
}

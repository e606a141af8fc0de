#pragma once

// Which standbys reads may go to, best first: what weir.read_targets() answers.
//
// One that is connected, replays, is listed in weir.lag_replicas and not in quarantine, and whose replay lag
// is within the bound. Without a bound one that has not caught up since it connected is left out, because its
// lag may be anything.
//
// A weight is the share of the bound that is left, 1 to 100; without a bound, 100 at no lag and half of that
// for each doubling of (1 s + lag).
//
// Pure: no PostgreSQL header, no clock, no system call.

#include <cstdint>

#include "replicas/quarantine.hpp"
#include "replicas/replica_state.hpp"

namespace weir
{

struct ReadTarget {
    uint32_t row; // index into the rows
    uint32_t weight;
};

struct ReadWish {
    int64_t max_lag_us; // below 0: no bound
    const char *region; // null: any; empty: those without one
};

// `quarantined`: one per row. Returns how many there are.
uint32_t FindReadTargets(const ReplicaRow (&rows)[kMaxReplicas],
                         const Quarantine (&quarantined)[kMaxReplicas], const ReadWish &wish,
                         ReadTarget (&to)[kMaxReplicas]) noexcept;

} // namespace weir

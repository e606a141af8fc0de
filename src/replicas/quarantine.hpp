#pragma once

// Whether a standby is too far behind to be given new readers, with hysteresis: a standby that is let in and
// out with every wave of its lag is worse than one that is out, because its clients move each time.
//
// In after kSamplesToEnter samples in a row over the limit. Out when the last kSamplesToLeave samples were
// below half of it, and none has been over it for `hold_us`: stalls of replay that follow each other (a
// series of queries in conflict, one bulk load after the other) are one incident, however deep the lag falls
// between them. So there is never more than one change per `hold_us` but the first.
//
// Pure: no PostgreSQL header, no clock, no system call.

#include <atomic>
#include <cstdint>
#include <type_traits>

#include "replicas/replica_state.hpp"

namespace weir
{

constexpr uint32_t kSamplesToEnter = 3;
constexpr uint32_t kSamplesToLeave = 5;

struct QuarantineRule {
    int64_t limit_us; // 0: there is no quarantine, and one that is on ends
    int64_t hold_us;
};

// All zero: not in quarantine, nothing seen.
struct Quarantine {
    uint32_t on;
    uint32_t run;         // samples in a row that speak for the change
    int64_t last_over_us; // the last sample over the limit; since the quarantine began

    // A sample. Returns whether it changed.
    bool Note(int64_t lag_us, int64_t now_us, const QuarantineRule &rule) noexcept;

    // Returns whether it was on.
    bool End() noexcept;
};

static_assert(std::is_trivially_copyable_v<Quarantine>);

// A server's own, as others see it. The sampler alone writes it, but `refused`: that is everybody's.
struct QuarantineShared {
    Quarantine machine; // the sampler's
    std::atomic<uint32_t> on;
    std::atomic<int64_t> since_us; // of `on`; 0: it has never changed
    std::atomic<int64_t> limit_us; // weir.quarantine_lag as the sampler knows it; 0: off
    std::atomic<int64_t> hold_us;
    std::atomic<int64_t> last_over_us;
    std::atomic<uint64_t> changes; // since weir.reset()
    std::atomic<uint64_t> refused; // connections; with weir.mode = observe, those that would have been
};

// The sampler alone writes it; `own` is read without a lock, the rest under replica_lock.
struct RoutingShared {
    QuarantineShared own;
    Quarantine of_standbys[kMaxReplicas]; // of the rows of ReplicaReport
    uint32_t serials[kMaxReplicas];       // of these rows, then
};

} // namespace weir

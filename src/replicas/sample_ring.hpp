#pragma once

// The last samples of all standbys, one a second for each: what weir.replica_lag_history shows. Under
// replica_lock, whole. All zero is empty.
//
// Pure: no PostgreSQL header, no clock, no system call.

#include <cstdint>

namespace weir
{

constexpr uint32_t kLagSamples = 8192; // 4 standbys for half an hour, 40 for 3 minutes

struct LagSample {
    int64_t at_us;
    uint32_t row;    // index of the standby's row; kOwnSample: this server's own
    uint32_t serial; // of the standby: the row may have become another's
    int64_t lag_us;
    int64_t lag_bytes;
    float replay_rate;
};

constexpr uint32_t kOwnSample = UINT32_MAX;

struct SampleRing {
    uint64_t written;
    LagSample samples[kLagSamples];

    void Push(const LagSample &sample) noexcept { samples[written++ % kLagSamples] = sample; }
    uint32_t Count() const noexcept
    {
        return written < kLagSamples ? static_cast<uint32_t>(written) : kLagSamples;
    }
    // 0 is the oldest.
    const LagSample &At(uint32_t i) const noexcept { return samples[(written - Count() + i) % kLagSamples]; }
};

} // namespace weir

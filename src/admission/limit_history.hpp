#pragma once

// The last minutes of the limit: what it was, why, and what the server did under it. One row a second.
//
// One writer (the launcher), any number of readers, no lock: a row is complete before `written` counts it,
// and a reader discards the rows that the writer may have overtaken meanwhile. A writer that dies inside
// Push() leaves an uncounted row, which its successor writes again.
//
// Pure: no PostgreSQL header, no clock, no system call.

#include <atomic>
#include <cstdint>

#include "admission/adaptive_limit.hpp"

namespace weir
{

struct LimitSample {
    int64_t at_us; // end of the second, in the caller's clock
    uint32_t limit;
    AdaptiveReason reason;
    float active; // means over the second
    float running;
    float lock_waiting;
    float waiting;
    float admitted_per_second;
    float oldest_wait_ms; // of those waiting at the end of the second
};

constexpr uint32_t kHistorySamples = 600; // ten minutes

struct LimitHistory {
    std::atomic<uint64_t> written; // rows ever; row n is at n % kHistorySamples
    LimitSample samples[kHistorySamples];

    void Push(const LimitSample &sample) noexcept
    {
        const uint64_t n = written.load(std::memory_order_relaxed);
        samples[n % kHistorySamples] = sample;
        written.store(n + 1, std::memory_order_release);
    }

    // Copies the rows, oldest first; returns how many.
    uint32_t Copy(LimitSample (&to)[kHistorySamples]) const noexcept
    {
        const uint64_t before = written.load(std::memory_order_acquire);
        // One less than the ring holds: the writer may be at the oldest right now.
        const uint64_t oldest = before < kHistorySamples ? 0 : before - kHistorySamples + 1;
        for (uint64_t n = oldest; n < before; n++)
            to[n - oldest] = samples[n % kHistorySamples];
        std::atomic_thread_fence(std::memory_order_acquire);
        const uint64_t after = written.load(std::memory_order_relaxed);
        const uint64_t safe = after < kHistorySamples ? 0 : after - kHistorySamples + 1;
        const uint64_t lost = safe > oldest ? safe - oldest : 0;
        if (lost >= before - oldest)
            return 0;
        for (uint64_t n = 0; n < before - oldest - lost; n++)
            to[n] = to[n + lost];
        return static_cast<uint32_t>(before - oldest - lost);
    }
};

} // namespace weir

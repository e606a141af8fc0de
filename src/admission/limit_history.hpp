#pragma once

// The last minutes of the limit: what it was, why, and what the server did under it. One row a second.
//
// One writer (the launcher), any number of readers, no lock: a row is complete before `written` counts it,
// and a reader discards the rows that the writer may have overtaken meanwhile. A writer that dies inside
// Push() leaves an uncounted row, which its successor writes again. Fields are stored with release and loaded
// with acquire, so that a reader who meets one of a newer row also sees `written` that far.
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
    float lock_queues; // in which these stand (lock_queues.hpp)
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
        Transfer(sample, &samples[n % kHistorySamples], Store());
        written.store(n + 1, std::memory_order_release);
    }

    // Copies the rows, oldest first; returns how many.
    uint32_t Copy(LimitSample (&to)[kHistorySamples]) const noexcept
    {
        const uint64_t before = written.load(std::memory_order_acquire);
        // One less than the ring holds: the writer may be at the oldest right now.
        const uint64_t oldest = before < kHistorySamples ? 0 : before - kHistorySamples + 1;
        for (uint64_t n = oldest; n < before; n++)
            Transfer(samples[n % kHistorySamples], &to[n - oldest], Load());
        const uint64_t after = written.load(std::memory_order_relaxed);
        const uint64_t safe = after < kHistorySamples ? 0 : after - kHistorySamples + 1;
        const uint64_t lost = safe > oldest ? safe - oldest : 0;
        if (lost >= before - oldest)
            return 0;
        for (uint64_t n = 0; n < before - oldest - lost; n++)
            to[n] = to[n + lost];
        return static_cast<uint32_t>(before - oldest - lost);
    }

  private:
    // C++17 has no atomic_ref.
    struct Store {
        template <typename T> void operator()(const T &from, T *to) const noexcept
        {
            T value = from;
            __atomic_store(to, &value, __ATOMIC_RELEASE);
        }
    };
    struct Load {
        template <typename T> void operator()(const T &from, T *to) const noexcept
        {
            __atomic_load(&from, to, __ATOMIC_ACQUIRE);
        }
    };

    template <typename Copier>
    static void Transfer(const LimitSample &from, LimitSample *to, Copier copy) noexcept
    {
        copy(from.at_us, &to->at_us);
        copy(from.limit, &to->limit);
        copy(from.reason, &to->reason);
        copy(from.active, &to->active);
        copy(from.running, &to->running);
        copy(from.lock_waiting, &to->lock_waiting);
        copy(from.lock_queues, &to->lock_queues);
        copy(from.waiting, &to->waiting);
        copy(from.admitted_per_second, &to->admitted_per_second);
        copy(from.oldest_wait_ms, &to->oldest_wait_ms);
    }
};

} // namespace weir

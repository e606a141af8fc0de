#pragma once

// How many clients do something at once. They come in rounds, one for each batch, so it is the peak that
// counts, and it fades: by a quarter with every so many arrivals. Races only blur it.
//
// Pure: no PostgreSQL header, no clock, no system call.

#include <atomic>
#include <cstdint>

namespace weir
{

struct alignas(64) Company {
    std::atomic<uint32_t> present;
    std::atomic<uint32_t> peak;
    std::atomic<uint32_t> arrivals;

    // One more is here. Returns the peak.
    uint32_t Join() noexcept;
    void Leave() noexcept { present.fetch_sub(1, std::memory_order_relaxed); }
};

} // namespace weir

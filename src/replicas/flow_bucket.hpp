#pragma once

// A rate of bytes per second that many processes draw from, each in its turn, without a lock.
//
// Whoever wants to write reserves what it will probably write, and so gets a position in one long line of
// bytes; it may go when the released bytes, which grow at the rate, have come to its position. What it did
// not write, or wrote more, is corrected afterwards for all who wait. The positions know no rate: when that
// changes, the waiting go sooner or later by as much, and nobody has to be told.
//
// Debt, what was written beyond the rate, is forgotten past kMostDebtS of the rate: the controller sees the
// lag that it makes, and would punish for it a second time. Credit is kept up to kMostCreditS.
//
// Who writes: `rate`, `base` and `base_us` by the sampler alone, under `sequence` (odd: being written); the
// rest by anybody, atomically. A process that dies in the line leaves a hole as long as what it had reserved,
// which passes.
//
// Pure: no PostgreSQL header, no clock, no system call.

#include <atomic>
#include <cstdint>

namespace weir
{

constexpr double kMostDebtS = 1;
constexpr double kMostCreditS = 0.1;

struct alignas(128) FlowBucket {
    std::atomic<uint32_t> sequence;
    std::atomic<double> rate;     // bytes per second; 0: no limit
    std::atomic<int64_t> base;    // bytes that were released at base_us, without the corrections
    std::atomic<int64_t> base_us; //

    alignas(64) std::atomic<int64_t> reserved; // end of the line
    std::atomic<int64_t> corrections;
    std::atomic<int64_t> waiting_bytes; // of those who wait
    std::atomic<uint64_t> charged;      // bytes that were really written, while there was a limit

    // The sampler's: a new rate; 0: none any more.
    void SetRate(double new_rate, int64_t now_us) noexcept;

    bool Limits() const noexcept { return rate.load(std::memory_order_relaxed) > 0; }

    // A place in the line; it holds `bytes`.
    int64_t Reserve(int64_t bytes) noexcept { return reserved.fetch_add(bytes, std::memory_order_relaxed); }

    // How long until it is that position's turn, at the present rate; 0: it is.
    int64_t LeftUs(int64_t position, int64_t now_us) const noexcept;

    // What was reserved was not written.
    void Return(int64_t bytes) noexcept { corrections.fetch_add(bytes, std::memory_order_relaxed); }

    // `written` bytes were, `held` were reserved for them.
    void Charge(int64_t written, int64_t held) noexcept
    {
        corrections.fetch_add(held - written, std::memory_order_relaxed);
        charged.fetch_add(static_cast<uint64_t>(written), std::memory_order_relaxed);
    }

  private:
    int64_t Released(int64_t now_us) const noexcept;
};

static_assert(std::atomic<double>::is_always_lock_free && std::atomic<int64_t>::is_always_lock_free);

} // namespace weir

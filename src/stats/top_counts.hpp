#pragma once

// The most frequent strings of a stream, however many different ones there are: Space-Saving (Metwally,
// Agrawal, El Abbadi, "Efficient Computation of Frequent and Top-k Elements in Data Streams", ICDT 2005).
//
// A string that has no entry takes over the entry with the smallest count, and inherits that count as its
// possible error. So, after n strings:
//     count - error <= how often the string came <= count, for each entry;
//     a string that came more than n / kTopCounts times has an entry;
//     and while there are no more than kTopCounts different strings, all counts are exact.
// A stream without a frequent string fills the entries with counts that are nearly all error. That is why
// Top() goes by what is certain.
//
// Who writes: the caller, under a lock of his own. A process that dies inside Add() takes the shared memory
// with it.
//
// Pure: no PostgreSQL header, no clock, no system call.

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace weir
{

constexpr uint32_t kTopCounts = 16;
constexpr size_t kTopNameSize = 64; // NAMEDATALEN: a role fits

struct TopCount {
    char name[kTopNameSize];
    uint64_t count; // 0: no entry
    uint64_t error; // by how much `count` may be too large

    uint64_t AtLeast() const noexcept { return count - error; }
};

// Zeroes are an empty one.
struct TopCounts {
    TopCount entries[kTopCounts];

    // A longer name is cut to 63 bytes, before the character of UTF-8 that would be cut in two: what differs
    // later is one string here. A null counts as empty, and empty is a name like any other.
    void Add(const char *name) noexcept;

    void Clear() noexcept;

    // The indexes of at most `n` entries, those that certainly came most often (AtLeast()) first; equal ones
    // in the order of `count`, then of the entries. Returns how many.
    uint32_t Top(uint32_t n, uint32_t *indexes) const noexcept;
};

static_assert(std::is_trivially_copyable_v<TopCounts> && std::is_standard_layout_v<TopCounts>);

} // namespace weir

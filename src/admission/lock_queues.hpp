#pragma once

// In how many queues for locks the blocked slot holders stand: each has an end that works, and that end is
// what the adaptive limit can have more of.
//
// A holder that waits for another holder which waits itself is in the same queue as that one: behind a hot
// row stand some who hold rows that others wait for.
//
// Pure: no PostgreSQL header, no clock, no system call.

#include <cstdint>

namespace weir
{

struct LockWait {
    uint64_t awaited; // the transaction (or other lock) that it waits for; 0: it stands behind one who does
    uint64_t own;     // what others wait for when they wait for it, no other's; 0: nobody can
};

// Sorts `waits`.
uint32_t CountLockQueues(LockWait *waits, uint32_t count) noexcept;

} // namespace weir

#include "admission/lock_queues.hpp"

#include <algorithm>

#include "pure_only.hpp"

namespace weir
{

uint32_t CountLockQueues(LockWait *waits, uint32_t count) noexcept
{
    LockWait *end = waits + count;
    std::sort(waits, end, [](const LockWait &a, const LockWait &b) { return a.awaited < b.awaited; });
    uint32_t queues = 0;
    uint64_t last = 0;
    for (const LockWait *wait = waits; wait < end; wait++) {
        if (wait->awaited == last)
            continue;
        last = wait->awaited;
        queues += std::none_of(waits, end, [last](const LockWait &other) { return other.own == last; });
    }
    return queues;
}

} // namespace weir

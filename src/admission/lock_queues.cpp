#include "admission/lock_queues.hpp"

#include <algorithm>

#include "pure_only.hpp"

namespace weir
{

uint32_t CountLockQueues(LockWait *waits, uint32_t count) noexcept
{
    LockWait *end = waits + count;
    const auto before = [](const LockWait &a, const LockWait &b) { return a.awaited < b.awaited; };
    std::sort(waits, end, before);
    uint32_t awaited = 0;
    uint64_t last = 0;
    for (const LockWait *wait = waits; wait < end; wait++) {
        awaited += wait->awaited != last;
        last = wait->awaited;
    }
    // Of these the ones that wait themselves; each is somebody's own.
    const auto blocked = std::count_if(waits, end, [&](const LockWait &wait) {
        return wait.own != 0 && std::binary_search(waits, end, LockWait{wait.own, 0}, before);
    });
    return awaited - static_cast<uint32_t>(blocked);
}

} // namespace weir

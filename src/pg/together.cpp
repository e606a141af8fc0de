#include "pg/together.hpp"

#ifdef __linux__
#include <ctime>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "pg/compat.hpp"
#include "pg/shared.hpp"

extern "C" {
#include "storage/latch.h"
}

namespace weir
{

#ifdef __linux__

static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t));

void SleepOn(std::atomic<uint32_t> *word, uint32_t value, long timeout_ms)
{
    const timespec timeout = {timeout_ms / 1000, (timeout_ms % 1000) * 1000000};
    // With a timeout the call is not restarted after a signal.
    syscall(SYS_futex, word, FUTEX_WAIT, value, &timeout, nullptr, 0);
}

void WakeTogether(std::atomic<uint32_t> *word, const uint32_t *, uint32_t)
{
    syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

#else

void SleepOn(std::atomic<uint32_t> *word, uint32_t value, long timeout_ms)
{
    ResetLatch(MyLatch);
    if (word->load(std::memory_order_seq_cst) == value)
        WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, timeout_ms, CoalesceWaitEvent());
}

void WakeTogether(std::atomic<uint32_t> *, const uint32_t *sessions, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        WakeTicket(sessions[i]);
}

#endif

uint32 CoalesceWaitEvent()
{
    static uint32 event = 0;
    if (event == 0)
        event = NewWaitEvent("WeirCoalesce");
    return event;
}

} // namespace weir

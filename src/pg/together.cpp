#include "pg/together.hpp"

// -DWEIR_WAKE_BY_LATCH: the portable way on Linux too, to compile and to measure it.
#if defined(__linux__) && !defined(WEIR_WAKE_BY_LATCH)
#define WEIR_WAKE_BY_FUTEX
#endif

#ifdef WEIR_WAKE_BY_FUTEX
#include <ctime>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "pg/compat.hpp"
#include "pg/shared.hpp"

extern "C" {
#include "pgstat.h"
#include "storage/latch.h"
}

namespace weir
{

namespace
{

constexpr int kLatchEvents = WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH;

} // namespace

#ifdef WEIR_WAKE_BY_FUTEX

static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t));

void SleepOn(std::atomic<uint32_t> *word, uint32_t value, int64_t timeout_us, uint32 wait_event)
{
    const timespec timeout = {static_cast<time_t>(timeout_us / USECS_PER_SEC),
                              static_cast<long>(timeout_us % USECS_PER_SEC) * 1000};
    // With a timeout the call is not restarted after a signal.
    pgstat_report_wait_start(wait_event);
    syscall(SYS_futex, word, FUTEX_WAIT, value, &timeout, nullptr, 0);
    pgstat_report_wait_end();
}

void WakeTogether(std::atomic<uint32_t> *word, const uint32_t *, uint32_t)
{
    syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

bool WaitLatchUs(int64_t timeout_us, uint32 wait_event)
{
    if (timeout_us < 1000) {
        std::atomic<uint32_t> word = {};
        SleepOn(&word, 0, timeout_us, wait_event);
        timeout_us = 0;
    }
    return (WaitLatch(MyLatch, kLatchEvents, static_cast<long>(timeout_us / 1000), wait_event) &
            WL_LATCH_SET) != 0;
}

#else

bool WaitLatchUs(int64_t timeout_us, uint32 wait_event)
{
    const long timeout_ms = Max(static_cast<long>(timeout_us / 1000), 1L);
    return (WaitLatch(MyLatch, kLatchEvents, timeout_ms, wait_event) & WL_LATCH_SET) != 0;
}

void SleepOn(std::atomic<uint32_t> *word, uint32_t value, int64_t timeout_us, uint32 wait_event)
{
    ResetLatch(MyLatch);
    if (word->load(std::memory_order_seq_cst) == value)
        WaitLatch(MyLatch, kLatchEvents, static_cast<long>((timeout_us + 999) / 1000), wait_event);
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

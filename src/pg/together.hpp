#pragma once

// To sleep until a word in shared memory changes, and to wake all who sleep on it by one call: a futex on
// Linux, each sleeper's latch elsewhere. A signal ends the sleep, but one that comes just before it does not:
// every sleep is short.

#include "pg/prelude.hpp"

namespace weir
{

// Returns when the word is not `value`, somebody woke us, a signal came, or the time is over. Meanwhile that
// wait event is shown; 0: none.
void SleepOn(std::atomic<uint32_t> *word, uint32_t value, int64_t timeout_us, uint32 wait_event);

// `sessions`: PGPROC numbers of those who may sleep on it; others among them are woken for nothing.
void WakeTogether(std::atomic<uint32_t> *word, const uint32_t *sessions, uint32_t count);

// Waits for the latch, in microseconds; returns whether it is set. Below the millisecond that WaitLatch() can
// it is only looked at in the end; where there is no futex, that is a millisecond.
bool WaitLatchUs(int64_t timeout_us, uint32 wait_event);

// The wait event of a client whose write is in a batch, or waits for one: WeirCoalesce, in 15 and 16 plain
// Extension.
uint32 CoalesceWaitEvent();

} // namespace weir

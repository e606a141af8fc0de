#pragma once

// To sleep until a word in shared memory changes, and to wake all who sleep on it by one call: a futex on
// Linux, each sleeper's latch elsewhere. A signal ends the sleep, but one that comes just before it does not:
// every sleep is short.

#include "pg/prelude.hpp"

namespace weir
{

// Returns when the word is not `value`, somebody woke us, a signal came, or the time is over.
void SleepOn(std::atomic<uint32_t> *word, uint32_t value, int64_t timeout_us);

// `sessions`: PGPROC numbers of those who may sleep on it.
void WakeTogether(std::atomic<uint32_t> *word, const uint32_t *sessions, uint32_t count);

// The wait event of a client whose write is in a batch, or waits for one: WeirCoalesce, in 15 and 16 plain
// Extension.
uint32 CoalesceWaitEvent();

} // namespace weir

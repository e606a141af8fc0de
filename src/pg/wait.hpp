#pragma once

// To wait in a backend: on the latch and on the client's socket, interruptibly, for a bounded time.

#include "pg/prelude.hpp"

namespace weir
{

enum class Woken { kLatch, kTimeout, kClientGone };

// Waits until the latch is set, the client has closed its connection (seen at once, where the platform can
// report that), or the time is over. Does not process interrupts: the caller does, after it has left its
// queue. Exits if the postmaster died. The caller resets the latch before it looks at what it waits for.
Woken WaitForLatchOrClient(long timeout_ms, uint32 wait_event);

// The wait event of a transaction that queues: WeirTransactionQueue, in 15 and 16 plain Extension.
uint32 TransactionQueueWaitEvent();

// What CHECK_FOR_INTERRUPTS() is about to raise, if anything.
enum class Interrupt { kNone, kCancel, kStatementTimeout, kTerminate };

Interrupt PendingInterrupt();

// The client is gone: ends the session as the server itself does when it finds that out. Does not return.
[[noreturn]] void EndForLostClient();

} // namespace weir

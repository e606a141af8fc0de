#include "pg/wait.hpp"

#include "pg/compat.hpp"

extern "C" {
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/tcopprot.h"
#include "utils/timeout.h"
}

// From libpq/libpq.h, which would ask for the headers of Kerberos and OpenSSL.
extern "C" PGDLLIMPORT WaitEventSet *FeBeWaitSet;
#define FeBeWaitSetSocketPos 0
#define FeBeWaitSetNEvents 3

namespace weir
{

// The server's own set of socket, latch and postmaster is used: every place that waits on it says anew what
// it wants of the socket (pq_check_connection() in pqcomm.c relies on the same), and it costs no descriptor
// of its own.
Woken WaitForLatchOrClient(long timeout_ms, uint32 wait_event)
{
    // Without that ability only latch and time are waited for; the loss shows when the answer is sent.
    if (FeBeWaitSet == nullptr || !WaitEventSetCanReportClosed()) {
        const int woken =
            WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, timeout_ms, wait_event);
        return (woken & WL_LATCH_SET) != 0 ? Woken::kLatch : Woken::kTimeout;
    }

    WaitEvent events[FeBeWaitSetNEvents];
    ModifyWaitEvent(FeBeWaitSet, FeBeWaitSetSocketPos, WL_SOCKET_CLOSED, nullptr);
    const int count = WaitEventSetWait(FeBeWaitSet, timeout_ms, events, FeBeWaitSetNEvents, wait_event);
    Woken woken = Woken::kTimeout;
    for (int i = 0; i < count; i++) {
        if ((events[i].events & WL_POSTMASTER_DEATH) != 0)
            proc_exit(1);
        if ((events[i].events & WL_SOCKET_CLOSED) != 0)
            return Woken::kClientGone;
        if ((events[i].events & WL_LATCH_SET) != 0)
            woken = Woken::kLatch;
    }
    return woken;
}

uint32 TransactionQueueWaitEvent()
{
    static uint32 event = 0;
    if (event == 0)
        event = NewWaitEvent("WeirTransactionQueue");
    return event;
}

Interrupt PendingInterrupt()
{
    if (!InterruptPending)
        return Interrupt::kNone;
    if (ProcDiePending || ClientConnectionLost)
        return Interrupt::kTerminate;
    if (TransactionTimeoutIsPending())
        return Interrupt::kStatementTimeout;
    if (QueryCancelPending)
        return get_timeout_indicator(STATEMENT_TIMEOUT, false) ? Interrupt::kStatementTimeout
                                                               : Interrupt::kCancel;
    return Interrupt::kNone;
}

void EndForLostClient()
{
    ClientConnectionLost = 1;
    InterruptPending = 1;
    CHECK_FOR_INTERRUPTS();
    // Interrupts are never held off where we wait, but the promise not to return must not rest on that.
    ereport(FATAL, (errcode(ERRCODE_CONNECTION_FAILURE), errmsg("connection to client lost")));
    pg_unreachable();
}

} // namespace weir

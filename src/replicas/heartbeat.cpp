#include "replicas/heartbeat.hpp"

#include "pg/compat.hpp"
#include "pg/shared.hpp"

extern "C" {
#include "access/xact.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
}

namespace weir
{

namespace
{

constexpr int64_t kAfterErrorUs = 60 * USECS_PER_SEC;

int64_t not_before = 0;

// A transaction that wrote nothing but its commit is not flushed by its commit, nor does it wait for
// synchronous standbys: the WAL writer flushes it, and a disk that stalls does not stall the sampler. The WAL
// writer is woken, because the more punctual beats are, the sooner a standby knows that one is missing.
void WriteBeat()
{
    StartTransactionCommand();
    GetTopTransactionId();
    CommitTransactionCommand();
    WakeWalWriter();
}

} // namespace

int64_t UntilBeatUs(int64_t now)
{
    const ReplicasShared &replicas = shared->replicas;
    if (settings.heartbeat_interval_ms == 0 || replicas.standbys.load() == 0 ||
        replicas.in_recovery.load() != 0)
        return INT64_MAX;
    const int64_t interval = settings.heartbeat_interval_ms * INT64CONST(1000);
    const int64_t since = now - replicas.beat_us.load();
    const int64_t left = since >= 0 && since < interval ? interval - since : 0;
    return Max(left, not_before - now);
}

void BeatIfDue(int64_t now)
{
    ReplicasShared &replicas = shared->replicas;
    if (UntilBeatUs(now) > 0)
        return;
    const MemoryContext context = CurrentMemoryContext;
    PG_TRY();
    {
        WriteBeat();
        replicas.beats.fetch_add(1);
        replicas.beat_us.store(now);
    }
    PG_CATCH();
    {
        // No xid can be had, for one thing. Sampling goes on.
        MemoryContextSwitchTo(context);
        EmitErrorReport();
        FlushErrorState();
        AbortOutOfAnyTransaction();
        not_before = now + kAfterErrorUs;
    }
    PG_END_TRY();
    MemoryContextSwitchTo(context);
}

} // namespace weir

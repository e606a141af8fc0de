#include "coalesce/lazy.hpp"

#include <cstddef>

#include "coalesce/interceptor.hpp"
#include "coalesce/lanes.hpp"
#include "pg/compat.hpp"
#include "pg/monotonic.hpp"
#include "pg/shared.hpp"
#include "pg/together.hpp"
#include "stats/rows.hpp"

extern "C" {
#include "access/xact.h"
#include "access/xlog.h"
#include "common/hashfn.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "nodes/plannodes.h"
#include "storage/proc.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/timestamp.h"
}

namespace weir
{

namespace
{

constexpr int64_t kLookAgainUs = 10 * 1000;
constexpr int64_t kOrderPatienceUs = USECS_PER_SEC;
constexpr int64_t kFencePatienceUs = 10 * USECS_PER_SEC;

bool fenced = false;       // by this transaction
Lane *queued_in = nullptr; // where this session's last queued request went; null: all are done

std::atomic<uint32_t> &FenceOf(Oid database)
{
    return shared->coalescing.fences[database % kFences];
}

void OnTransactionEnd(XactEvent event, void *)
{
    if (!fenced || (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT && event != XACT_EVENT_PREPARE))
        return;
    fenced = false;
    FenceOf(MyDatabaseId).fetch_sub(1);
}

// Everything but the state word.
void CopyRequest(const RequestSlot &from, RequestSlot *to)
{
    constexpr size_t kHeader = offsetof(RequestSlot, relation);
    memcpy(reinterpret_cast<char *>(to) + kHeader, reinterpret_cast<const char *>(&from) + kHeader,
           offsetof(RequestSlot, payload) - kHeader + from.bytes);
}

// Waits until `done()`, for so long at most. Whether it came.
template <typename Done> bool WaitForLane(Lane *lane, int64_t patience_us, Done done)
{
    const int64_t began = MonotonicUs();
    bool came = false;
    lane->lazy_waiters.fetch_add(1);
    // What is interrupted here must not be counted for ever.
    PG_TRY();
    {
        for (;;) {
            const uint32_t ends = lane->lazy_ends.load();
            came = done();
            if (came || MonotonicUs() - began > patience_us)
                break;
            Ring(lane);
            SleepOn(&lane->lazy_ends, ends, kLookAgainUs, CoalesceWaitEvent());
            CHECK_FOR_INTERRUPTS();
        }
    }
    PG_FINALLY();
    {
        lane->lazy_waiters.fetch_sub(1);
    }
    PG_END_TRY();
    return came;
}

bool IsPast(const Lane &lane, Oid database, uint64_t number)
{
    LWLockAcquire(lazy_lock, LW_SHARED);
    const bool past = lane.database.load() != database || lazy_queue.IsPast(lane.lazy, number);
    LWLockRelease(lazy_lock);
    return past;
}

uint64_t LastQueued()
{
    LWLockAcquire(lazy_lock, LW_SHARED);
    const uint64_t number = lazy_queue.LastNumber();
    LWLockRelease(lazy_lock);
    return number;
}

// What is queued in this database now is written, or has failed.
bool AwaitAllQueued(int64_t patience_us)
{
    const uint64_t number = LastQueued();
    const int64_t until = MonotonicUs() + patience_us;
    for (Lane &lane : shared->coalescing.lanes) {
        if (IsPast(lane, MyDatabaseId, number))
            continue;
        if (!WaitForLane(&lane, until - MonotonicUs(), [&] { return IsPast(lane, MyDatabaseId, number); }))
            return false;
    }
    return true;
}

// Statements after which a queued row might not fit its table any more, or the table be gone.
bool ChangesTables(const Node *statement)
{
    switch (nodeTag(statement)) {
    case T_AlterTableStmt:
    case T_DropStmt:
    case T_TruncateStmt:
    case T_DropOwnedStmt:
    case T_IndexStmt:
    case T_CreateTrigStmt:
    case T_RuleStmt:
    case T_AlterDomainStmt:
    case T_AlterTypeStmt:
    case T_AlterEnumStmt:
    case T_AlterExtensionStmt:
        return true;
    default:
        return false;
    }
}

// Under lazy_lock.
void Release(Lane *lane, uint32_t index)
{
    lazy_outstanding[lazy_queue.Link(index).session].fetch_sub(1);
    shared->coalescing.tables[lazy_slots[index].statistics].unwritten.fetch_sub(1, std::memory_order_relaxed);
    lazy_queue.Remove(&lane->lazy, index);
}

void Fence()
{
    if (!fenced) {
        FenceOf(MyDatabaseId).fetch_add(1);
        fenced = true;
    }
    const int64_t patience_us =
        LockTimeout > 0 ? Min(LockTimeout * static_cast<int64_t>(1000), kFencePatienceUs) : kFencePatienceUs;
    if (!AwaitAllQueued(patience_us))
        ereport(
            ERROR,
            (errcode(ERRCODE_LOCK_NOT_AVAILABLE),
             errmsg("rows that were queued before this statement could not be written in time"),
             errhint("They wait for a lock that another transaction holds, or this one, or no coalescing "
                     "worker could be started. The view weir.stat_coalesce shows how many are unwritten.")));
}

} // namespace

bool MayBeQueued(const QueryDesc *query_desc)
{
    const auto *modify = reinterpret_cast<const ModifyTable *>(query_desc->plannedstmt->planTree);
    return settings.coalesce_ack == kAckQueued && settings.coalesce && CurrentMode() == Mode::kEnforce &&
           query_desc->operation == CMD_INSERT && modify->returningLists == NIL &&
           modify->onConflictAction == ONCONFLICT_NONE && lazy_queue.Capacity() > 0;
}

bool QueueRequest(const RequestSlot &request, Lane *lane, const TableFacts &facts)
{
    uint32_t index = kNoLazy;
    uint32_t count = 0;
    // Large: its memory goes with this transaction. Partitioned: so do the locks on the partitions.
    if (request.large != 0 || facts.partitioned)
        return false;
    LWLockAcquire(lazy_lock, LW_EXCLUSIVE);
    // A worker that ends looks once more under this lock.
    const bool open = lane->State() == LaneState::kRunning && lane->database.load() == MyDatabaseId &&
                      lane->stop.load() == 0 && FenceOf(MyDatabaseId).load() == 0;
    if (open)
        index = lazy_queue.Push(&lane->lazy, MyTicketId(), GetUserId());
    if (index != kNoLazy) {
        RequestSlot *slot = &lazy_slots[index];
        CopyRequest(request, slot);
        slot->relation = facts.relation;
        slot->statistics = static_cast<uint32_t>(facts.statistics - shared->coalescing.tables);
        slot->synchronous_commit = SYNCHRONOUS_COMMIT_LOCAL_FLUSH;
        slot->row_type = facts.row_type;
        slot->large = slot->returned_large = 0;
        lazy_outstanding[MyTicketId()].fetch_add(1);
        facts.statistics->unwritten.fetch_add(1, std::memory_order_relaxed);
        count = lane->lazy.count;
        lane->lazy_count.store(count);
        lane->lazy_arrivals.fetch_add(1);
    }
    LWLockRelease(lazy_lock);
    if (index == kNoLazy) {
        facts.statistics->queue_full.fetch_add(1, std::memory_order_relaxed);
        return false;
    }
    queued_in = lane;
    facts.statistics->queued.fetch_add(1, std::memory_order_relaxed);
    // In between the worker gathers company for it, and looks by itself.
    if (count == 1 || count >= kQueuedCompany)
        Ring(lane);
    CommitWithoutFlush();
    return true;
}

bool HasQueued()
{
    return queued_in != nullptr;
}

void AwaitOwnQueued()
{
    if (queued_in == nullptr)
        return;
    const std::atomic<uint32_t> &mine = lazy_outstanding[MyTicketId()];
    if (WaitForLane(queued_in, kOrderPatienceUs, [&] { return mine.load() == 0; }))
        queued_in = nullptr;
}

void MindQueued(const Node *statement)
{
    if (shared == nullptr || !OidIsValid(MyDatabaseId) || !IsTransactionState() || RecoveryInProgress())
        return;
    if (ChangesTables(statement))
        Fence();
    else if (IsA(statement, CopyStmt) && reinterpret_cast<const CopyStmt *>(statement)->is_from)
        AwaitOwnQueued();
}

void DropQueuedOf(Oid database)
{
    uint32_t dropped = 0;
    LWLockAcquire(coalesce_lock, LW_EXCLUSIVE);
    LWLockAcquire(lazy_lock, LW_EXCLUSIVE);
    for (Lane &lane : shared->coalescing.lanes) {
        if (lane.database.load() != database)
            continue;
        while (lane.lazy.count > 0) {
            Release(&lane, LazyQueue::First(lane.lazy));
            dropped++;
        }
        lane.lazy_count.store(0);
        if (lane.State() == LaneState::kWanted)
            Leave(&lane, 0);
    }
    LWLockRelease(lazy_lock);
    LWLockRelease(coalesce_lock);
    if (dropped > 0)
        ereport(LOG, (errmsg("pg_weir: %u queued writes went with their database", dropped)));
}

uint32_t RowTypeOf(TupleDesc descriptor)
{
    uint32_t hash = static_cast<uint32_t>(descriptor->natts);
    for (int i = 0; i < descriptor->natts; i++) {
        const Form_pg_attribute column = TupleDescAttr(descriptor, i);
        hash = hash_combine(hash, column->attisdropped ? 0 : column->atttypid);
        hash = hash_combine(hash, static_cast<uint32_t>(column->atttypmod));
    }
    return hash;
}

void ReleaseQueued(Lane *lane, const uint32_t *indexes, uint32_t count)
{
    if (count == 0)
        return;
    LWLockAcquire(lazy_lock, LW_EXCLUSIVE);
    for (uint32_t i = 0; i < count; i++)
        Release(lane, indexes[i]);
    lane->lazy_count.store(lane->lazy.count);
    LWLockRelease(lazy_lock);
    lane->lazy_ends.fetch_add(1);
    if (lane->lazy_waiters.load() > 0)
        WakeTogether(&lane->lazy_ends, nullptr, 0);
}

void ReportFailure(uint32_t index, const ErrorData *error, const char *schema, const char *table)
{
    const RequestSlot &slot = lazy_slots[index];
    FailureRing &ring = shared->coalescing.failures;
    shared->coalescing.tables[slot.statistics].failed.fetch_add(1, std::memory_order_relaxed);
    LWLockAcquire(lazy_lock, LW_EXCLUSIVE);
    CoalesceFailure &failure = ring.last[ring.count++ % kFailures];
    failure.at = GetCurrentTimestamp();
    failure.database = MyDatabaseId;
    failure.role = lazy_queue.Link(index).role;
    failure.relation = slot.relation;
    failure.rows = slot.rows;
    snprintf(failure.schema, sizeof(failure.schema), "%s", schema);
    snprintf(failure.table, sizeof(failure.table), "%s", table);
    snprintf(failure.constraint, sizeof(failure.constraint), "%s",
             error->constraint_name != nullptr ? error->constraint_name : "");
    snprintf(failure.sqlstate, sizeof(failure.sqlstate), "%s", unpack_sql_state(error->sqlerrcode));
    // Not cut in the middle of a character: it will be read as text.
    const int length = pg_mbcliplen(error->message, static_cast<int>(strlen(error->message)),
                                    CoalesceFailure::kMessageSize - 1);
    snprintf(failure.message, sizeof(failure.message), "%.*s", length, error->message);
    LWLockRelease(lazy_lock);
    ereport(LOG, (errcode(error->sqlerrcode),
                  errmsg("pg_weir: %u queued rows for table \"%s.%s\" could not be written: %s", slot.rows,
                         schema, table, error->message),
                  error->detail != nullptr ? errdetail_internal("%s", error->detail) : 0,
                  errhint("Their client was told that they were queued: weir.coalesce_ack.")));
}

void InstallLazy()
{
    RegisterXactCallback(OnTransactionEnd, nullptr);
}

} // namespace weir

using namespace weir;

WEIR_SQL_FUNCTION(weir_coalesce_flush)
{
    RequireShared();
    const auto *timeout = DatumGetIntervalP(PG_GETARG_DATUM(0));
    const double timeout_s = static_cast<double>(timeout->time) / USECS_PER_SEC +
                             (30.0 * timeout->month + timeout->day) * SECS_PER_DAY;
    if (timeout_s < 0 || timeout_s > SECS_PER_DAY)
        ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
                        errmsg("the timeout must be between 0 and 1 day")));
    PG_RETURN_BOOL(AwaitAllQueued(static_cast<int64_t>(timeout_s * USECS_PER_SEC)));
}

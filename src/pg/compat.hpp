#pragma once

// The only file that tests PG_VERSION_NUM. It defines the newest server's way under our own name, for 15 to
// 18.

#include "pg/prelude.hpp"

extern "C" {
// 16 moved it.
#if PG_VERSION_NUM >= 160000
#include "nodes/queryjumble.h"
#else
#include "utils/queryjumble.h"
#endif
#include "access/genam.h"
#include "access/htup_details.h"
#include "access/tableam.h"
#include "catalog/pg_authid_d.h"
#include "catalog/pg_database_d.h"
#include "executor/executor.h"
#include "nodes/nodeFuncs.h"
#include "parser/parse_relation.h"
#include "postmaster/postmaster.h"
#include "replication/slot.h"
#include "replication/walsender_private.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "utils/acl.h"
#include "utils/backend_status.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/guc_tables.h"
#include "utils/wait_event.h"
}

#if PG_VERSION_NUM < 150000 || PG_VERSION_NUM >= 190000
#error "pg_weir knows PostgreSQL 15 to 18"
#endif

namespace weir
{

// 17 put the virtual transaction id's parts into PGPROC.vxid and made the process number a variable.
#if PG_VERSION_NUM >= 170000
inline LocalTransactionId CurrentLxid()
{
    return MyProc->vxid.lxid;
}
inline uint32_t MyTicketId()
{
    return static_cast<uint32_t>(MyProcNumber);
}
#else
inline LocalTransactionId CurrentLxid()
{
    return MyProc->lxid;
}
inline uint32_t MyTicketId()
{
    return static_cast<uint32_t>(MyProc->pgprocno);
}
#endif

// The WAL writer then flushes what was committed asynchronously. 18 knows it by its number.
inline void WakeWalWriter()
{
#if PG_VERSION_NUM >= 180000
    const ProcNumber writer = ProcGlobal->walwriterProc;
    if (writer != INVALID_PROC_NUMBER)
        SetLatch(&GetPGProcByNumber(writer)->procLatch);
#else
    Latch *latch = ProcGlobal->walwriterLatch;
    if (latch != nullptr)
        SetLatch(latch);
#endif
}

// 16 has one function for all kinds of objects.
#if PG_VERSION_NUM >= 160000
inline bool MayConnectToDatabase(Oid database, Oid role)
{
    return object_aclcheck(DatabaseRelationId, database, role, ACL_CONNECT) == ACLCHECK_OK;
}
#else
inline bool MayConnectToDatabase(Oid database, Oid role)
{
    return pg_database_aclcheck(database, role, ACL_CONNECT) == ACLCHECK_OK;
}
#endif

// All settings of this process, in the order of their names. 16 keeps them in a hash table.
#if PG_VERSION_NUM >= 160000
inline config_generic **AllSettings(int *count)
{
    return get_guc_variables(count);
}
#else
inline config_generic **AllSettings(int *count)
{
    *count = GetNumConfigOptions();
    return get_guc_variables();
}
#endif

// 17 lets an extension name its wait events.
#if PG_VERSION_NUM >= 170000
inline uint32 NewWaitEvent(const char *name)
{
    return WaitEventExtensionNew(name);
}
#else
inline uint32 NewWaitEvent(const char *)
{
    return PG_WAIT_EXTENSION;
}
#endif

// 16 renamed it.
#ifdef PG_WAIT_BUFFERPIN
constexpr uint32 kWaitBufferPin = PG_WAIT_BUFFERPIN;
#else
constexpr uint32 kWaitBufferPin = PG_WAIT_BUFFER_PIN;
#endif

// 16 added connections reserved for other roles than superusers, and tells how many are free.
#if PG_VERSION_NUM >= 160000
inline bool HaveFreePlaces(int spare)
{
    int free_places;
    return HaveNFreeProcs(SuperuserReservedConnections + ReservedConnections + spare, &free_places);
}
inline bool MayUseReservedConnections(Oid role)
{
    return has_privs_of_role(role, ROLE_PG_USE_RESERVED_CONNECTIONS);
}
#else
inline bool HaveFreePlaces(int spare)
{
    return HaveNFreeProcs(ReservedBackends + spare);
}
inline bool MayUseReservedConnections(Oid)
{
    return false;
}
#endif

// 17 added transaction_timeout.
#if PG_VERSION_NUM >= 170000
inline bool TransactionTimeoutIsPending()
{
    return TransactionTimeoutPending;
}
#else
inline bool TransactionTimeoutIsPending()
{
    return false;
}
#endif

// Check hooks return memory that guc.c frees: with free() before 16, with guc_free() since.
#if PG_VERSION_NUM >= 160000
inline void *GucExtraAlloc(size_t size)
{
    return guc_malloc(LOG, size);
}
#else
inline void *GucExtraAlloc(size_t size)
{
    return malloc(size);
}
#endif

// 16 turned the lock table's SHM_QUEUEs into dlists. Calls `f(PROCLOCK *)` until it returns true; so does
// this. The caller holds the lock's partition lock.
template <typename F> bool AnyProcLock(LOCK *lock, F f)
{
#if PG_VERSION_NUM >= 160000
    // dlist_foreach and dlist_container check types in a way that only C can.
    const dlist_node *end = &lock->procLocks.head;
    for (dlist_node *at = lock->procLocks.head.next; at != nullptr && at != end; at = at->next)
        if (f(reinterpret_cast<PROCLOCK *>(reinterpret_cast<char *>(at) - offsetof(PROCLOCK, lockLink))))
            return true;
    return false;
#else
    SHM_QUEUE *queue = &lock->procLocks;
    auto *at = reinterpret_cast<PROCLOCK *>(SHMQueueNext(queue, queue, offsetof(PROCLOCK, lockLink)));
    while (at != nullptr) {
        if (f(at))
            return true;
        at = reinterpret_cast<PROCLOCK *>(SHMQueueNext(queue, &at->lockLink, offsetof(PROCLOCK, lockLink)));
    }
    return false;
#endif
}

// The same for the locks that this process holds in a partition, of which it has the lock: `f(const LOCK *)`.
template <typename F> bool AnyOwnLock(int partition, F f)
{
#if PG_VERSION_NUM >= 160000
    const dlist_node *end = &MyProc->myProcLocks[partition].head;
    for (dlist_node *at = MyProc->myProcLocks[partition].head.next; at != nullptr && at != end;
         at = at->next) {
        const auto *held =
            reinterpret_cast<PROCLOCK *>(reinterpret_cast<char *>(at) - offsetof(PROCLOCK, procLink));
        if (f(held->tag.myLock))
            return true;
    }
    return false;
#else
    SHM_QUEUE *queue = &MyProc->myProcLocks[partition];
    auto *at = reinterpret_cast<PROCLOCK *>(SHMQueueNext(queue, queue, offsetof(PROCLOCK, procLink)));
    while (at != nullptr) {
        if (f(at->tag.myLock))
            return true;
        at = reinterpret_cast<PROCLOCK *>(SHMQueueNext(queue, &at->procLink, offsetof(PROCLOCK, procLink)));
    }
    return false;
#endif
}

// 18 dropped ExecutorRun's execute_once.
#if PG_VERSION_NUM >= 180000
#define WEIR_EXECUTOR_RUN_PARAMETERS QueryDesc *query_desc, ScanDirection direction, uint64 count
#define WEIR_EXECUTOR_RUN_ARGUMENTS query_desc, direction, count
#else
#define WEIR_EXECUTOR_RUN_PARAMETERS                                                                         \
    QueryDesc *query_desc, ScanDirection direction, uint64 count, bool execute_once
#define WEIR_EXECUTOR_RUN_ARGUMENTS query_desc, direction, count, execute_once
#endif

// 16 knows updates that concern summarizing indexes only.
#if PG_VERSION_NUM >= 160000
using UpdatedIndexes = TU_UpdateIndexes;
inline List *UpdateIndexTuples(ResultRelInfo *target, TupleTableSlot *slot, EState *estate,
                               UpdatedIndexes which)
{
    return which == TU_None ? NIL
                            : ExecInsertIndexTuples(target, slot, estate, true, false, nullptr, NIL,
                                                    which == TU_Summarizing);
}
// `conflicted`: null, or to be told instead of an error.
inline List *InsertIndexTuples(ResultRelInfo *target, TupleTableSlot *slot, EState *estate, bool *conflicted,
                               List *arbiters)
{
    return ExecInsertIndexTuples(target, slot, estate, false, conflicted != nullptr, conflicted, arbiters,
                                 false);
}
#else
using UpdatedIndexes = bool;
inline List *UpdateIndexTuples(ResultRelInfo *target, TupleTableSlot *slot, EState *estate,
                               UpdatedIndexes which)
{
    return which ? ExecInsertIndexTuples(target, slot, estate, true, false, nullptr, NIL) : NIL;
}
inline List *InsertIndexTuples(ResultRelInfo *target, TupleTableSlot *slot, EState *estate, bool *conflicted,
                               List *arbiters)
{
    return ExecInsertIndexTuples(target, slot, estate, false, conflicted != nullptr, conflicted, arbiters);
}
#endif

// Whether the row could be inserted as far as these indexes (none: all unique ones) are concerned. 18 takes
// the tuple that may conflict with itself.
inline bool HasNoConflict(ResultRelInfo *target, TupleTableSlot *slot, EState *estate, List *arbiters)
{
    ItemPointerData conflict;
#if PG_VERSION_NUM >= 180000
    ItemPointerData none;
    ItemPointerSetInvalid(&none);
    return ExecCheckIndexConstraints(target, slot, estate, &conflict, &none, arbiters);
#else
    return ExecCheckIndexConstraints(target, slot, estate, &conflict, arbiters);
#endif
}

// 18 counts index searches for EXPLAIN.
inline IndexScanDesc BeginIndexScan(Relation table, Relation index, Snapshot snapshot, int keys)
{
#if PG_VERSION_NUM >= 180000
    return index_beginscan(table, index, snapshot, nullptr, keys, 0);
#else
    return index_beginscan(table, index, snapshot, keys, 0);
#endif
}

// An executor state whose only relation is this one; `updated`: its columns that an UPDATE may change. 16
// moved these into a struct of their own, 18 added what was pruned.
inline EState *ExecutorStateFor(Relation relation, [[maybe_unused]] Bitmapset *updated)
{
    EState *estate = CreateExecutorState();
    RangeTblEntry *entry = makeNode(RangeTblEntry);
    entry->rtekind = RTE_RELATION;
    entry->relid = RelationGetRelid(relation);
    entry->relkind = relation->rd_rel->relkind;
    entry->rellockmode = RowExclusiveLock;
#if PG_VERSION_NUM >= 160000
    List *permissions = NIL;
    addRTEPermissionInfo(&permissions, entry)->updatedCols = updated;
#if PG_VERSION_NUM >= 180000
    ExecInitRangeTable(estate, list_make1(entry), permissions, bms_make_singleton(1));
#else
    ExecInitRangeTable(estate, list_make1(entry), permissions);
#endif
#else
    entry->updatedCols = updated;
    ExecInitRangeTable(estate, list_make1(entry));
#endif
    return estate;
}

// Before 16 these are declared with an empty parameter list, which C++ takes at its word.
template <typename Context>
Node *MutateTree(Node *node, Node *(*mutator)(Node *, Context *), Context *context)
{
#if PG_VERSION_NUM >= 160000
    return expression_tree_mutator(node, reinterpret_cast<Node *(*)(Node *, void *)>(mutator), context);
#else
    return expression_tree_mutator(node, reinterpret_cast<Node *(*)()>(reinterpret_cast<void (*)()>(mutator)),
                                   context);
#endif
}
template <typename Context> bool WalkTree(Node *node, bool (*walker)(Node *, Context *), Context *context)
{
#if PG_VERSION_NUM >= 160000
    return expression_tree_walker(node, reinterpret_cast<bool (*)(Node *, void *)>(walker), context);
#else
    return expression_tree_walker(node, reinterpret_cast<bool (*)()>(reinterpret_cast<void (*)()>(walker)),
                                  context);
#endif
}

// 17 gave random() siblings, and so another name.
#if PG_VERSION_NUM >= 170000
constexpr Oid kRandomFunction = F_RANDOM_;
#else
constexpr Oid kRandomFunction = F_RANDOM;
#endif

// A column of the row as it is after an INSERT or UPDATE, or was before a DELETE. 18 has old.c and new.c.
inline bool IsReturnedColumn(const Var *var, int table)
{
#if PG_VERSION_NUM >= 180000
    if (var->varreturningtype != VAR_RETURNING_DEFAULT)
        return false;
#endif
    return static_cast<int>(var->varno) == table && var->varattno > 0;
}

// 18 has generated columns that are computed when they are read.
inline bool HasVirtualColumns([[maybe_unused]] const TupleConstr *constraints)
{
#if PG_VERSION_NUM >= 180000
    return constraints != nullptr && constraints->has_generated_virtual;
#else
    return false;
#endif
}

// How a row of the root becomes one of the partition; null: it is one. 16 finds it when it is asked for.
inline TupleConversionMap *RootToPartitionMap(ResultRelInfo *partition, [[maybe_unused]] EState *estate)
{
#if PG_VERSION_NUM >= 160000
    return ExecGetRootToChildMap(partition, estate);
#else
    return partition->ri_RootToPartitionMap;
#endif
}

// 18 can leave room before the tuple.
inline MinimalTuple FormMinimalTuple(TupleDesc descriptor, const Datum *values, const bool *nulls)
{
#if PG_VERSION_NUM >= 180000
    return heap_form_minimal_tuple(descriptor, values, nulls, 0);
#else
    return heap_form_minimal_tuple(descriptor, const_cast<Datum *>(values), const_cast<bool *>(nulls));
#endif
}
inline MinimalTuple CopyMinimalTuple(MinimalTuple tuple)
{
#if PG_VERSION_NUM >= 180000
    return heap_copy_minimal_tuple(tuple, 0);
#else
    return heap_copy_minimal_tuple(tuple);
#endif
}

// Whether commits wait for standbys at all: what the waiting itself looks at. A bit since the minor releases
// of 2025.
inline bool SyncStandbysAreDefined()
{
#ifdef SYNC_STANDBY_DEFINED
    return (WalSndCtl->sync_standbys_status & SYNC_STANDBY_DEFINED) != 0;
#else
    return WalSndCtl->sync_standbys_defined;
#endif
}

// A walsender of a logical subscription. 16 says so; before, its slot does.
#if PG_VERSION_NUM >= 160000
inline bool IsLogicalSender(const WalSnd *sender, int)
{
    return sender->kind == REPLICATION_KIND_LOGICAL;
}
#else
inline bool IsLogicalSender(const WalSnd *, int pid)
{
    for (int i = 0; i < max_replication_slots; i++) {
        ReplicationSlot *slot = &ReplicationSlotCtl->replication_slots[i];
        SpinLockAcquire(&slot->mutex);
        const bool found = slot->in_use && slot->active_pid == pid && SlotIsLogical(slot);
        SpinLockRelease(&slot->mutex);
        if (found)
            return true;
    }
    return false;
}
#endif

// The entry of a process in pg_stat_activity, or null; of a copy that
// pgstat_clear_backend_activity_snapshot() gives back. 16 renamed the way to it.
inline const PgBackendStatus *FindBackendStatus(int pid)
{
    for (int i = 1; i <= pgstat_fetch_stat_numbackends(); i++) {
#if PG_VERSION_NUM >= 160000
        const LocalPgBackendStatus *local = pgstat_get_local_beentry_by_index(i);
#else
        const LocalPgBackendStatus *local = pgstat_fetch_stat_local_beentry(i);
#endif
        if (local != nullptr && local->backendStatus.st_procpid == pid)
            return &local->backendStatus;
    }
    return nullptr;
}

// 17 tells how much is buffered.
#if PG_VERSION_NUM >= 170000
extern "C" ssize_t pq_buffer_remaining_data(void);
inline bool InputIsBuffered()
{
    return pq_buffer_remaining_data() > 0;
}
#else
extern "C" bool pq_buffer_has_data(void);
inline bool InputIsBuffered()
{
    return pq_buffer_has_data();
}
#endif

} // namespace weir

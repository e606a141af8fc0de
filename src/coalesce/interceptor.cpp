#include "coalesce/interceptor.hpp"

#include "admission/transaction_gate.hpp"
#include "coalesce/insert_rows.hpp"
#include "coalesce/lanes.hpp"
#include "coalesce/large_payload.hpp"
#include "coalesce/lazy.hpp"
#include "coalesce/opt_in.hpp"
#include "coalesce/shape.hpp"
#include "pg/compat.hpp"
#include "pg/monotonic.hpp"
#include "pg/shared.hpp"
#include "pg/snapshot.hpp"
#include "pg/together.hpp"
#include "pg/wait.hpp"
#include "replicas/flow.hpp"
#include "replicas/read_your_writes.hpp"

extern "C" {
#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "executor/instrument.h"
#include "libpq/pqcomm.h"
#include "nodes/execnodes.h"
#include "nodes/plannodes.h"
#include "parser/parsetree.h"
#include "replication/origin.h"
#include "storage/procsignal.h"
#include "tcop/pquery.h"
#include "utils/guc.h"
#include "utils/portal.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
}

// From libpq/libpq.h, which would ask for the headers of Kerberos and OpenSSL.
extern "C" {
void pq_startmsgread(void);
void pq_endmsgread(void);
int pq_peekbyte(void);
}

namespace weir
{

namespace
{

// A worker is worth its hand-off when so many clients write at the same time. Fewer share flushes well enough
// by themselves; and inserts have less to gain, having no row to share.
constexpr uint32_t kCompany = 6;
constexpr uint32_t kCompanyForInserts = 12;

constexpr int64_t kLookAgainUs = 50 * 1000;   // while waiting: interrupts that came just before we slept
constexpr int64_t kStalledUs = USECS_PER_SEC; // a worker that has not taken a request for so long is stuck
constexpr int64_t kUnattendedUs = 60 * USECS_PER_SEC;

// Where we are counted as present, until our transaction ends.
Company *present_in = nullptr;

// Where the WAL ended that this transaction had written when a worker had its rows; 0: none has.
XLogRecPtr written_until = InvalidXLogRecPtr;

// Not when somebody else's hook has written since.
void SkipFlush()
{
    if (written_until == InvalidXLogRecPtr || written_until != XactLastRecEnd)
        return;
    set_config_option("synchronous_commit", "off", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0,
                      false);
    DisregardCommit();
}

void OnTransactionEnd(XactEvent event, void *)
{
    if (event == XACT_EVENT_PRE_COMMIT)
        SkipFlush();
    if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT)
        return;
    FreeOwnLargePayloads();
    written_until = InvalidXLogRecPtr;
    if (present_in != nullptr)
        present_in->Leave();
    present_in = nullptr;
}

// ---- whether --------------------------------------------------------------------------------------

// The top-level statement of the protocol's own portal. Others run inside something that goes on.
bool IsTopLevel(const QueryDesc *query_desc)
{
    Portal portal = ActivePortal;
    return portal != nullptr && portal->name[0] == '\0' && list_length(portal->stmts) == 1 &&
           linitial(portal->stmts) == query_desc->plannedstmt && portal->portalSnapshot == nullptr &&
           query_desc->instrument_options == 0;
}

// In the extended protocol everything until Sync is one transaction, and nothing says so before the first
// statement has run. What is not there yet cannot be known. exec_simple_query() makes its portal invisible.
bool EndsWithSync()
{
    if (!ActivePortal->visible)
        return true;
    if (!InputIsBuffered())
        return false;
    pq_startmsgread();
    const int next = pq_peekbyte();
    pq_endmsgread();
    return next == 'S';
}

// Of the session as it is.
Decline JudgeSession()
{
    if (IsTransactionBlock() || IsSubTransaction())
        return Decline::kTransactionBlock;
    if (XactIsoLevel > XACT_READ_COMMITTED || XactReadOnly)
        return Decline::kIsolation;
    if (replorigin_session_origin != InvalidRepOriginId)
        return Decline::kReplicationOrigin;
    return synchronous_commit == SYNCHRONOUS_COMMIT_OFF ? Decline::kSynchronousCommit : Decline::kNone;
}

} // namespace

Decline JudgeTransaction(const QueryDesc *query_desc)
{
    if (!IsTopLevel(query_desc))
        return Decline::kNested;
    const Decline session = JudgeSession();
    if (session != Decline::kNone)
        return session;
    if (TransactionIdIsValid(GetTopTransactionIdIfAny()))
        return Decline::kHasXid;
    if ((MyXactFlags & XACT_FLAGS_PIPELINING) != 0 || !EndsWithSync())
        return Decline::kPipeline;
    return Decline::kNone;
}

namespace
{

Decline JudgePlan(const QueryDesc *query_desc, const TableFacts &facts)
{
    const PlannedStmt *statement = query_desc->plannedstmt;
    const auto *modify = reinterpret_cast<const ModifyTable *>(statement->planTree);
    if (statement->hasModifyingCTE || statement->subplans != NIL || statement->parallelModeNeeded ||
        list_length(modify->resultRelations) != 1 || modify->rowMarks != NIL || !modify->canSetTag ||
        modify->plan.initPlan != NIL)
        return Decline::kStatement;
    if (modify->onConflictAction == ONCONFLICT_UPDATE ||
        list_length(modify->arbiterIndexes) > RequestSlot::kMaxArbiters)
        return Decline::kOnConflict;
    if (!ReturnsColumnsOnly(query_desc))
        return Decline::kReturning;
    switch (modify->operation) {
    case CMD_INSERT:
        return facts.insert;
    case CMD_UPDATE:
        if (modify->withCheckOptionLists != NIL)
            return Decline::kRowSecurity;
        return facts.update;
    case CMD_DELETE:
        return facts.remove;
    default:
        return Decline::kStatement;
    }
}

bool Declined(const TableFacts &facts, Relation relation, Decline why)
{
    facts.statistics->declined[static_cast<size_t>(why)].fetch_add(1, std::memory_order_relaxed);
    ereport(DEBUG1, (errmsg_internal("pg_weir: statement on \"%s\" not coalesced: %s",
                                     RelationGetRelationName(relation), DeclineName(why)),
                     errdetail_internal("%s", DeclineDetail(why))));
    return false;
}

// ---- waiting --------------------------------------------------------------------------------------

// Takes the request back. False: a worker has it.
bool TakeBack(RequestSlot *slot, Lane *lane)
{
    if (!slot->Withdraw())
        return false;
    RequestBitmap::Clear(RequestsOf(LaneIndex(*lane)), MyTicketId());
    slot->give_back = GiveBack::kWithdrawn;
    slot->verdict = Verdict::kNotExecuted;
    return true;
}

// Its batch is durable here, and what it waits for are standbys.
bool IsCommittedHere(const Lane *lane, uint32_t epoch)
{
    const TransactionId xid = lane->xid.load();
    return lane->epoch.load() == epoch && TransactionIdIsValid(xid) && TransactionIdDidCommit(xid);
}

// Whether to go on waiting. Interrupts are processed where nothing is at stake: after the request was taken
// back. From when a worker has it the answer is awaited, as the server itself does in a commit; and as there,
// a session that is terminated does not wait for standbys.
bool MayWait(RequestSlot *slot, Lane *lane, uint32_t epoch, int64_t began)
{
    const bool queued = RequestSlot::StateOf(slot->Load()) == RequestState::kQueued;
    const int64_t waited_us = MonotonicUs() - began;
    const bool stalled = waited_us > (lane->throttled.load() != 0 ? kUnattendedUs : kStalledUs);
    if (queued && (InterruptPending || lane->State() != LaneState::kRunning || lane->epoch.load() != epoch ||
                   stalled)) {
        const bool back = TakeBack(slot, lane);
        if (back && stalled)
            NoteStall(lane);
        return !back;
    }
    if (ProcSignalBarrierPending)
        ProcessProcSignalBarrier();
    if (!queued && ProcDiePending && IsCommittedHere(lane, epoch))
        return false;
    // Its worker ended without an end of its batch, which cannot be: every exit passes through it.
    return queued || (lane->epoch.load() == epoch && lane->State() != LaneState::kFree) ||
           waited_us < kUnattendedUs;
}

// A request that its client gives up: what is known of it. The worker may still write into the slot.
Verdict Abandoned(const Lane *lane, uint32_t epoch)
{
    return IsCommittedHere(lane, epoch) ? Verdict::kCommittedLocally : Verdict::kUnknown;
}

Verdict Await(RequestSlot *slot, Lane *lane, uint32_t epoch, int64_t began)
{
    std::atomic<uint32_t> *word;
    uint32_t value;
    bool abandoned = false;
    while (lane->wake.Prepare(*slot, &word, &value)) {
        if (!InterruptPending)
            SleepOn(word, value, kLookAgainUs, CoalesceWaitEvent());
        const RequestState state = RequestSlot::StateOf(slot->Load());
        if (state == RequestState::kDone)
            break;
        if (!MayWait(slot, lane, epoch, began)) {
            abandoned = slot->Abandon();
            if (abandoned)
                DisownLargePayloads();
            break;
        }
        // With a signal pending the sleep would return at once, again and again.
        if (InterruptPending && RequestSlot::StateOf(slot->Load()) == RequestState::kTaken)
            SleepOn(word, value, 1000, CoalesceWaitEvent());
    }
    return abandoned ? Abandoned(lane, epoch) : slot->verdict;
}

} // namespace

Verdict HandOver(RequestSlot *slot, Lane *lane, Histogram *waits)
{
    const int64_t began = MonotonicUs();
    const uint32_t epoch = lane->epoch.load();
    slot->synchronous_commit = static_cast<uint8_t>(synchronous_commit);
    slot->database = MyDatabaseId;
    slot->role = GetSessionUserId();
    HOLD_INTERRUPTS();
    slot->Publish();
    RequestBitmap::Set(RequestsOf(LaneIndex(*lane)), MyTicketId());
    Ring(lane);
    LendSlot();
    const Verdict verdict = Await(slot, lane, epoch, began);
    TakeSlotBack();
    if (RequestSlot::StateOf(slot->Load()) == RequestState::kDone) {
        OwnLargePayloads(slot);
        slot->Collect();
    }
    if (verdict != Verdict::kNotExecuted)
        NoteCommit(lane->commit_end.load());
    RESUME_INTERRUPTS();
    waits->Record(MonotonicUs() - began);
    return verdict;
}

// A cancel request that comes once a worker had it comes too late. It was held off, and must not make an
// error of a success now.
void HeedInterrupts(Verdict verdict)
{
    if (verdict == Verdict::kNotExecuted)
        CHECK_FOR_INTERRUPTS();
    else
        QueryCancelPending = false;
}

void EndIfAbandoned()
{
    if (ProcDiePending)
        CHECK_FOR_INTERRUPTS();
}

void ReportUnusual(Verdict verdict)
{
    if (verdict == Verdict::kCommittedLocally)
        ereport(WARNING, (errmsg("canceling wait for synchronous replication due to administrator command"),
                          errdetail("The transaction has already committed locally, but might not have been "
                                    "replicated to the standby.")));
    if (verdict == Verdict::kUnknown)
        ereport(ERROR, (errcode(ERRCODE_T_R_STATEMENT_COMPLETION_UNKNOWN),
                        errmsg("the coalescing worker ended before the outcome was certain"),
                        errhint("Look whether the row is there before you try again.")));
}

namespace
{

// Whether the statement can go on with another snapshot. A bitmap scan has taken the one there is.
bool CanDropSnapshot(const QueryDesc *query_desc)
{
    const Plan *below = outerPlan(query_desc->plannedstmt->planTree);
    if (query_desc->operation == CMD_INSERT)
        return !PulledRowsNeedSnapshot();
    return IsA(below, IndexScan) || IsA(below, SeqScan);
}

// Hands the packed request over, and returns when its fate is known. Without a snapshot meanwhile: who waits
// must not hold back the horizon.
Verdict Submit(QueryDesc *query_desc, RequestSlot *slot, Lane *lane, const TableFacts &facts)
{
    slot->relation = facts.relation;
    slot->returned_large = 0;
    slot->statistics = static_cast<uint32_t>(facts.statistics - shared->coalescing.tables);
    TableStatistics &statistics = *facts.statistics;
    DroppedSnapshot dropped = {};
    if (CanDropSnapshot(query_desc))
        dropped = DropExecutionSnapshot(query_desc);
    const Verdict verdict = HandOver(slot, lane, &statistics.waits);
    if (verdict == Verdict::kNotExecuted)
        statistics.given_back[static_cast<size_t>(slot->give_back)].fetch_add(1, std::memory_order_relaxed);
    HeedInterrupts(verdict);
    RetakeExecutionSnapshot(dropped, query_desc);
    return verdict;
}

// Clients that are in a statement like this at once.
uint32_t Join(Lane *lane)
{
    if (present_in == &lane->company)
        return present_in->peak.load(std::memory_order_relaxed);
    if (present_in != nullptr)
        present_in->Leave();
    present_in = &lane->company;
    return present_in->Join();
}

bool IsCompany(uint32_t clients, bool inserts)
{
    return clients >= (inserts ? kCompanyForInserts : kCompany);
}

} // namespace

void CommitWithoutFlush()
{
    if (TransactionIdIsValid(GetTopTransactionIdIfAny()))
        written_until = XactLastRecEnd;
}

namespace
{

Decline Pack(QueryDesc *query_desc, Relation relation, const TableFacts &facts, RequestSlot *slot)
{
    slot->large = 0;
    if (query_desc->operation != CMD_INSERT)
        return PackUpdateOrDelete(query_desc, relation, facts, slot);
    return PullRows(query_desc, slot);
}

void Finish(QueryDesc *query_desc, const RequestSlot &slot, Verdict verdict)
{
    ReportUnusual(verdict);
    EndIfAbandoned();
    CommitWithoutFlush();
    query_desc->estate->es_processed = slot.affected;
    if (query_desc->plannedstmt->hasReturning)
        SendReturning(query_desc, slot);
}

// In the statement's memory context.
bool Coalesce(QueryDesc *query_desc, Relation relation, const TableFacts &facts)
{
    Decline why = JudgePlan(query_desc, facts);
    if (why == Decline::kNone)
        why = JudgeTransaction(query_desc);
    const bool inserts = query_desc->operation == CMD_INSERT;
    if (why == Decline::kNone && inserts)
        why = JudgeInsert(query_desc);
    if (why != Decline::kNone)
        return Declined(facts, relation, why);
    Lane *lane = FindLane(facts.relation);
    if (lane == nullptr)
        return Declined(facts, relation, Decline::kNoWorker);
    const bool company = IsCompany(Join(lane), inserts);
    const bool may_be_queued = MayBeQueued(query_desc);
    if (!may_be_queued && IsStalled(lane))
        return Declined(facts, relation, Decline::kStalled);
    if (!company && !may_be_queued)
        return Declined(facts, relation, Decline::kAlone);

    RequestSlot *slot = &request_slots[MyTicketId()];
    if (RequestSlot::StateOf(slot->Load()) != RequestState::kIdle)
        return Declined(facts, relation, Decline::kNoWorker); // its last fate is still unknown
    why = Pack(query_desc, relation, facts, slot);
    if (why == Decline::kNone && may_be_queued) {
        if (QueueRequest(*slot, lane, facts)) {
            query_desc->estate->es_processed = slot->rows;
            return true;
        }
        AwaitOwnQueued();
        why = company ? Decline::kNone : Decline::kAlone;
    }
    if (why == Decline::kNone) {
        const Verdict verdict = Submit(query_desc, slot, lane, facts);
        if (verdict != Verdict::kNotExecuted) {
            Finish(query_desc, *slot, verdict);
            return true;
        }
    } else
        Declined(facts, relation, why);
    if (inserts)
        PulledRowsBack(query_desc);
    return false;
}

// The workers wait for replicas, and some sessions never do.
bool MustNotWaitForReplicas()
{
    return FlowIsEngaged() && FlowExemptsSession();
}

} // namespace

bool MayBeCoalesced(const QueryDesc *query_desc)
{
    const Node *plan = reinterpret_cast<const Node *>(query_desc->plannedstmt->planTree);
    if (CurrentMode() != Mode::kEnforce || !settings.coalesce || !IsClientBackend() || plan == nullptr ||
        !IsA(plan, ModifyTable) || MustNotWaitForReplicas())
        return false;
    const auto *modify = reinterpret_cast<const ModifyTable *>(plan);
    const RangeTblEntry *table =
        rt_fetch(linitial_int(modify->resultRelations), query_desc->plannedstmt->rtable);
    const TableFacts *facts = FactsKnownOf(table->relid);
    if (facts == nullptr || JudgePlan(query_desc, *facts) != Decline::kNone ||
        JudgeTransaction(query_desc) != Decline::kNone)
        return false;
    // Here already: who waits for a slot is company, too.
    Lane *lane = FindLane(table->relid);
    return lane != nullptr && !IsStalled(lane) &&
           (IsCompany(Join(lane), modify->operation == CMD_INSERT) || MayBeQueued(query_desc));
}

bool RunCoalesced(QueryDesc *query_desc)
{
    if (CurrentMode() != Mode::kEnforce || !settings.coalesce || !IsClientBackend() ||
        query_desc->planstate == nullptr || !IsA(query_desc->planstate, ModifyTableState) ||
        MustNotWaitForReplicas())
        return false;
    const auto *modify = reinterpret_cast<const ModifyTableState *>(query_desc->planstate);
    // The table that the statement names: of a partitioned one, an UPDATE writes to partitions.
    Relation relation = modify->rootResultRelInfo->ri_RelationDesc;
    const TableFacts *known = FactsOf(relation);
    if (known == nullptr)
        return false;
    const TableFacts facts = *known; // an invalidation may come while expressions are evaluated
    const MemoryContext previous = MemoryContextSwitchTo(query_desc->estate->es_query_cxt);
    if (query_desc->totaltime != nullptr)
        InstrStartNode(query_desc->totaltime);
    query_desc->estate->es_processed = 0;
    const bool done = Coalesce(query_desc, relation, facts);
    if (query_desc->totaltime != nullptr)
        InstrStopNode(query_desc->totaltime,
                      done ? static_cast<double>(query_desc->estate->es_processed) : 0);
    MemoryContextSwitchTo(previous);
    return done;
}

Decline Foresee(QueryDesc *query_desc, Relation relation, const TableFacts &facts)
{
    const bool inserts = query_desc->operation == CMD_INSERT;
    Decline why = JudgePlan(query_desc, facts);
    if (why == Decline::kNone)
        why = JudgeSession();
    if (why == Decline::kNone)
        why = inserts ? JudgeInsert(query_desc) : PackUpdateOrDelete(query_desc, relation, facts, nullptr);
    if (why != Decline::kNone)
        return why;
    Lane *lane = FindLane(facts.relation);
    if (lane == nullptr)
        return Decline::kNoWorker;
    if (MayBeQueued(query_desc))
        return Decline::kNone;
    return IsStalled(lane)                                                           ? Decline::kStalled
           : !IsCompany(lane->company.peak.load(std::memory_order_relaxed), inserts) ? Decline::kAlone
                                                                                     : Decline::kNone;
}

void InstallInterceptor()
{
    RegisterXactCallback(OnTransactionEnd, nullptr);
}

} // namespace weir

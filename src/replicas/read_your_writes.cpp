#include "replicas/read_your_writes.hpp"

#include "pg/compat.hpp"
#include "pg/shared.hpp"
#include "pg/snapshot.hpp"
#include "replicas/replay_wait.hpp"
#include "stats/rows.hpp"

extern "C" {
#include "access/xact.h"
#include "access/xlog.h"
#include "utils/builtins.h"
#include "utils/pg_lsn.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
}

namespace weir
{

namespace
{

LsnToken reached = {0, 0};                                 // seen replayed
LocalTransactionId last_query = InvalidLocalTransactionId; // the transaction that ran one
bool queries_before = false;                               // before the utility statement now running
uint64_t last_commit_end = 0;                              // 0: this session has written nothing
bool disregarded = false;                                  // the commit of the current transaction

bool HoldsSnapshot()
{
    return HaveRegisteredOrActiveSnapshot() || (IsolationUsesXactSnapshot() && FirstSnapshotSet);
}

void RefuseTooLate(const LsnToken &token)
{
    shared->replay_waits.too_late.fetch_add(1, std::memory_order_relaxed);
    ereport(ERROR, (errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
                    errmsg("this transaction cannot wait until WAL up to %X/%X is replayed",
                           WEIR_LSN_PARTS(token.lsn)),
                    errdetail("It has a snapshot, or ran a query that may have left locks: replay could wait "
                              "for it meanwhile."),
                    errhint("Wait before BEGIN, or between BEGIN and the transaction's first query.")));
}

// On a primary nothing is waited for, and a snapshot taken after the client got its token is new enough.
template <typename Drop, typename Retake>
void WaitWithoutSnapshot(const LsnToken &token, int timeout_ms, bool ran_query, Drop drop, Retake retake)
{
    if (!RecoveryInProgress()) {
        WaitForReplay(token, timeout_ms);
        return;
    }
    const DroppedSnapshot dropped = drop();
    if (HoldsSnapshot() || (ran_query && !IsReplayed(token)))
        RefuseTooLate(token);
    WaitForReplay(token, timeout_ms);
    retake(dropped);
}

template <typename Drop, typename Retake> void Honour(Drop drop, Retake retake)
{
    const LsnToken token = settings.min_lsn_token != nullptr ? *settings.min_lsn_token : LsnToken{0, 0};
    if (token.lsn != 0 && !(token == reached)) {
        WaitWithoutSnapshot(token, settings.lsn_wait_timeout_ms, last_query == CurrentLxid(), drop, retake);
        reached = token;
    }
    min_lsn_pending = false;
}

// ---- SQL functions ----------------------------------------------------------------------------------

LsnToken TokenArgument(FunctionCallInfo fcinfo, int n)
{
    LsnToken token;
    ParseError error;
    const char *given = text_to_cstring(PG_GETARG_TEXT_PP(n));
    if (!ParseLsnToken(given, &token, &error))
        ereport(ERROR, (errcode(ERRCODE_INVALID_TEXT_REPRESENTATION),
                        errmsg("invalid LSN: %s, at character %u", error.message, error.position + 1),
                        errhint("%s", kLsnTokenGrammar)));
    return token;
}

int TimeoutArgument(FunctionCallInfo fcinfo, int n)
{
    if (PG_ARGISNULL(n))
        return settings.lsn_wait_timeout_ms;
    const Interval *interval = PG_GETARG_INTERVAL_P(n);
    const double ms =
        static_cast<double>(interval->time) / 1000 +
        (static_cast<double>(interval->day) + static_cast<double>(interval->month) * DAYS_PER_MONTH) *
            SECS_PER_DAY * 1000;
    if (ms < 0 || ms > kMaxLsnWaitTimeoutMs)
        ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
                        errmsg("timeout must be between 0 and %d minutes", kMaxLsnWaitTimeoutMs / 60000)));
    return static_cast<int>(ms);
}

// CALL may be answered without a snapshot; inside a function, or under repeatable read, it has one.
void WaitInCall(const LsnToken &token, int timeout_ms)
{
    if (token.lsn != 0)
        WaitWithoutSnapshot(token, timeout_ms, queries_before, DropUtilitySnapshot, RetakeUtilitySnapshot);
}

// Reading may write WAL, too (hint bits, pruning), which nobody flushes soon: XactLastCommitEnd alone would
// have readers wait for that.
void OnTransactionEnd(XactEvent event, void *)
{
    if (event == XACT_EVENT_COMMIT && TransactionIdIsValid(GetTopTransactionIdIfAny()) && !disregarded)
        NoteCommit(XactLastCommitEnd);
    if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT)
        disregarded = false;
}

} // namespace

void HonourMinLsnBeforeQuery(QueryDesc *query_desc)
{
    Honour([=] { return DropStatementSnapshot(query_desc); },
           [=](const DroppedSnapshot &dropped) { RetakeStatementSnapshot(dropped, query_desc); });
}

void HonourMinLsnBeforeUtility()
{
    Honour(DropUtilitySnapshot, RetakeUtilitySnapshot);
}

void HonourMinLsnAfterSet()
{
    if (IsolationUsesXactSnapshot() && !HoldsSnapshot() && last_query != CurrentLxid())
        HonourMinLsnBeforeUtility();
}

void NoteQuery()
{
    queries_before = last_query == CurrentLxid();
    last_query = CurrentLxid();
}

void NoteCommit(uint64_t lsn)
{
    last_commit_end = Max(last_commit_end, lsn);
}

void DisregardCommit()
{
    disregarded = true;
}

void InstallReadYourWrites()
{
    RegisterXactCallback(OnTransactionEnd, nullptr);
}

} // namespace weir

using namespace weir;

WEIR_SQL_FUNCTION(weir_last_commit_lsn)
{
    if (last_commit_end == 0)
        PG_RETURN_NULL();
    PG_RETURN_LSN(last_commit_end);
}

WEIR_SQL_FUNCTION(weir_last_commit_token)
{
    if (last_commit_end == 0 || RecoveryInProgress())
        PG_RETURN_NULL();
    PG_RETURN_TEXT_P(
        cstring_to_text(psprintf("%X/%X@%u", WEIR_LSN_PARTS(last_commit_end), GetWALInsertionTimeLine())));
}

WEIR_SQL_FUNCTION(weir_lsn_reached)
{
    RequireShared();
    PG_RETURN_BOOL(IsReplayed({PG_GETARG_LSN(0), 0}));
}

WEIR_SQL_FUNCTION(weir_token_reached)
{
    RequireShared();
    PG_RETURN_BOOL(IsReplayed(TokenArgument(fcinfo, 0)));
}

WEIR_SQL_FUNCTION(weir_wait_for_lsn)
{
    RequireShared();
    if (!PG_ARGISNULL(0))
        WaitInCall({PG_GETARG_LSN(0), 0}, TimeoutArgument(fcinfo, 1));
    PG_RETURN_VOID();
}

WEIR_SQL_FUNCTION(weir_wait_for_token)
{
    RequireShared();
    if (!PG_ARGISNULL(0))
        WaitInCall(TokenArgument(fcinfo, 0), TimeoutArgument(fcinfo, 1));
    PG_RETURN_VOID();
}

WEIR_SQL_FUNCTION(weir_stat_replay_wait)
{
    RequireShared();
    const ReplayWaitShared &waits = shared->replay_waits;
    const HistogramSnapshot snapshot = waits.waits.Snapshot();
    Row row;
    row.PutInt(waits.waiting.load());
    row.PutCount(snapshot.Count());
    row.PutCount(waits.timed_out.load());
    row.PutCount(waits.too_late.load());
    PutWaits(&row, snapshot);
    row.PutTime(shared->statistics_since.load());
    return ReturnRow(fcinfo, &row);
}

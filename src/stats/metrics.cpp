// What stands in shared memory, as metrics. It is read while others write: each number is true, their sum may
// be a transaction off. Nothing here raises an error or allocates: the endpoint's worker calls it from within
// C++ frames.

#include "stats/metrics.hpp"

#include <limits>

#include "pg/compat.hpp"
#include "pg/shared.hpp"
#include "stats/metrics_text.hpp"
#include "stats/replica_metrics.hpp"
#include "stats/rows.hpp"

extern "C" {
#include "access/xlog.h"
#include "access/xlogrecovery.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
}

namespace weir
{

namespace
{

HistogramSnapshot snapshot; // of one histogram after the other: too long for a stack frame
HistogramSnapshot sum;

constexpr const char *departure_names[] = {"refused",           "timed_out",  "cancelled",
                                           "statement_timeout", "terminated", "client_gone"};
static_assert(sizeof(departure_names) / sizeof(departure_names[0]) == static_cast<size_t>(Departure::kCount));

double UnixSeconds(TimestampTz at)
{
    constexpr int64_t kEpochs = int64_t{POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE} * SECS_PER_DAY;
    return static_cast<double>(at) / USECS_PER_SEC + static_cast<double>(kEpochs);
}

double LimitAsReal(uint32_t limit)
{
    return limit < kUnlimited ? limit : std::numeric_limits<double>::infinity();
}

uint64_t Relaxed(const std::atomic<uint64_t> &counter)
{
    return counter.load(std::memory_order_relaxed);
}

// ---- the server -----------------------------------------------------------------------------------

void WriteServer(MetricsText *text)
{
    text->Gauge("pg_weir_info", "1, with the server's version.");
    text->Count(1, {{"server_version", PG_VERSION}});
    text->Gauge("pg_weir_mode", "1 for the mode that weir.mode has now, 0 for the others.");
    for (const Mode mode : {Mode::kOff, Mode::kObserve, Mode::kEnforce})
        text->Count(CurrentMode() == mode, {{"mode", ModeName(static_cast<int>(mode))}});
    text->Gauge("pg_weir_in_recovery", "1: a standby, or a server in recovery; 0: a primary.");
    const bool in_recovery = RecoveryInProgress();
    text->Count(in_recovery);
    text->Gauge("pg_weir_wal_position_bytes",
                "End of WAL as a number of bytes: flushed, or on a standby replayed.");
    text->Count(in_recovery ? GetXLogReplayRecPtr(nullptr) : GetFlushRecPtr(nullptr));
    text->Gauge("pg_weir_launcher_up", "1: the launcher minds the queues; 0: limits do not bind.");
    text->Count(!SupervisorIsAbsent(GetCurrentTimestamp()));
    text->Gauge("pg_weir_statistics_since_seconds", "Time of the last weir.reset(), or of the start.");
    text->Real(UnixSeconds(shared->statistics_since.load()));
}

// ---- the gates ------------------------------------------------------------------------------------

// The two gates have the same families, each under its own name.
struct GateNames {
    const char *limit, *active, *lent, *waiting, *admitted, *queued, *unserved, *bypassed, *lendings, *wait;
};

constexpr GateNames of_transactions = {
    "pg_weir_transactions_limit",          "pg_weir_transactions_active",
    "pg_weir_transactions_lent",           "pg_weir_transactions_waiting",
    "pg_weir_transactions_admitted_total", "pg_weir_transactions_queued_total",
    "pg_weir_transactions_unserved_total", "pg_weir_transactions_bypassed_total",
    "pg_weir_transactions_lendings_total", "pg_weir_transaction_wait_seconds"};

constexpr GateNames of_startups = {"pg_weir_startups_limit",          "pg_weir_startups_active",
                                   "pg_weir_startups_lent",           "pg_weir_startups_waiting",
                                   "pg_weir_startups_admitted_total", "pg_weir_startups_queued_total",
                                   "pg_weir_startups_unserved_total", "pg_weir_startups_bypassed_total",
                                   "pg_weir_startups_lendings_total", "pg_weir_startup_wait_seconds"};

// Calls write(class) for each that is in use.
template <typename Write> void ForEachClass(Gate *g, Write write)
{
    for (uint32_t i = 0; i < kMaxClasses; i++)
        if (g->group(i).in_use.load(std::memory_order_acquire) != 0)
            write(g->group(i));
}

void WriteNow(MetricsText *text, Gate *g, const GateNames &names)
{
    text->Gauge(names.limit, "How many may have a slot at once; +Inf: no limit.");
    text->Real(LimitAsReal(g->shared().limit.load()));
    text->Gauge(names.active, "Slots that are held now.");
    ForEachClass(g, [=](const GateClass &c) { text->Count(Gate::ClassActive(c), {{"class", c.name}}); });
    text->Gauge(names.lent, "Slots that are lent now.");
    uint32_t lent = 0;
    for (uint32_t id = 0; id < g->ticket_count(); id++)
        lent += g->State(id) == TicketState::kLent;
    text->Count(lent);
    text->Gauge(names.waiting, "Who waits for a slot now.");
    ForEachClass(g, [=](const GateClass &c) { text->Count(c.waiting.load(), {{"class", c.name}}); });
}

void WriteGate(MetricsText *text, Gate *g, const GateNames &names)
{
    WriteNow(text, g, names);
    text->Counter(names.admitted, "Slots given.");
    ForEachClass(g, [=](const GateClass &c) {
        text->Count(Gate::ClassAdmitted(c) - Relaxed(c.admitted_base), {{"class", c.name}});
    });
    text->Counter(names.queued, "Who had to wait; in observe mode, would have had to.");
    ForEachClass(g, [=](const GateClass &c) { text->Count(Relaxed(c.queued), {{"class", c.name}}); });
    text->Counter(names.unserved, "Who left without a slot, by reason.");
    ForEachClass(g, [=](const GateClass &c) {
        for (size_t i = 0; i < static_cast<size_t>(Departure::kCount); i++)
            text->Count(Relaxed(c.departures[i]), {{"class", c.name}, {"reason", departure_names[i]}});
    });
    text->Counter(names.bypassed, "Superusers and others who need no slot.");
    ForEachClass(g, [=](const GateClass &c) { text->Count(Relaxed(c.bypassed), {{"class", c.name}}); });
    text->Counter(names.lendings, "Slots lent.");
    ForEachClass(g, [=](const GateClass &c) { text->Count(Relaxed(c.lendings), {{"class", c.name}}); });
    text->HistogramOf(names.wait, "How long they waited, also those who left unserved.");
    ForEachClass(g, [=](const GateClass &c) {
        snapshot = c.waits.Snapshot();
        text->Durations(snapshot, {{"class", c.name}});
    });
}

void WriteTransactions(MetricsText *text)
{
    WriteGate(text, &gate, of_transactions);
    text->Counter("pg_weir_transactions_over_limit_total",
                  "Admitted over the limit because somebody waited for their locks.");
    ForEachClass(&gate, [=](const GateClass &c) { text->Count(Relaxed(c.over), {{"class", c.name}}); });
    text->Gauge("pg_weir_adaptive", "1: the limit of transactions is adaptive (weir.max_active = -1).");
    text->Count(shared->supervision.adapting);
    text->Gauge("pg_weir_adaptive_reason", "1 for what decided the adaptive limit last, 0 for the rest.");
    for (uint32_t i = 0; i <= static_cast<uint32_t>(AdaptiveReason::kBounds); i++) {
        const auto reason = static_cast<AdaptiveReason>(i);
        text->Count(shared->supervision.adapting && shared->supervision.adaptive.reason == reason,
                    {{"reason", AdaptiveReasonName(reason)}});
    }
    text->Counter("pg_weir_suspensions_total",
                  "How often the limit was suspended because every slot was stalled.");
    text->Count(Relaxed(shared->supervision.suspensions));
    text->Gauge("pg_weir_suspended", "Slots lent now because every one was stalled.");
    text->Count(shared->supervision.suspended.load());
}

void WriteStartups(MetricsText *text)
{
    const StartupShared &s = shared->startups;
    WriteGate(text, &startup_gate, of_startups);
    text->Gauge("pg_weir_startup_rate",
                "Connections per second that the adaptive pace lets in now; 0: no rate.");
    text->Real(s.paced.load() != 0 ? s.pace.rate : 0);
    text->Counter("pg_weir_startup_cpu_seconds_total", "Processor time of the logins that finished.");
    text->Real(static_cast<double>(Relaxed(s.cpu_us)) / 1e6);
    text->Counter("pg_weir_failed_logins_held_total", "Failed logins whose answer was held back.");
    text->Count(Relaxed(s.held));
}

// ---- coalescing -----------------------------------------------------------------------------------

bool HasCounters(const TableStatistics &table)
{
    return table.database.load() != 0;
}

void WriteTables(MetricsText *text, const char *name, const char *help,
                 std::atomic<uint64_t> TableStatistics::*counter)
{
    text->Counter(name, help);
    for (const TableStatistics &table : shared->coalescing.tables) {
        if (!HasCounters(table))
            continue;
        char database[16];
        char relation[16];
        snprintf(database, sizeof(database), "%u", table.database.load());
        snprintf(relation, sizeof(relation), "%u", table.relation.load());
        text->Count(Relaxed(table.*counter), {{"datid", database}, {"relid", relation}});
    }
}

// The histogram of all tables together: one for each would be a thousand lines.
const HistogramSnapshot &OfAllTables(Histogram TableStatistics::*histogram)
{
    sum = {};
    for (const TableStatistics &table : shared->coalescing.tables)
        if (HasCounters(table)) {
            snapshot = (table.*histogram).Snapshot();
            sum.Add(snapshot);
        }
    return sum;
}

template <typename Reason, size_t kCount>
void WriteReasons(MetricsText *text, const std::atomic<uint64_t> (&counters)[kCount],
                  const char *(*name)(Reason) noexcept)
{
    for (size_t i = 1; i < kCount; i++) // 0: none
        text->Count(Relaxed(counters[i]), {{"reason", name(static_cast<Reason>(i))}});
}

template <typename Reason, size_t kCount>
void WriteTableReasons(MetricsText *text, std::atomic<uint64_t> (TableStatistics::*counters)[kCount],
                       const char *(*name)(Reason) noexcept)
{
    for (size_t i = 1; i < kCount; i++) {
        uint64_t count = 0;
        for (const TableStatistics &table : shared->coalescing.tables)
            count += Relaxed((table.*counters)[i]);
        text->Count(count, {{"reason", name(static_cast<Reason>(i))}});
    }
}

void WriteCoalescing(MetricsText *text)
{
    WriteTables(text, "pg_weir_coalesce_requests_total", "Statements that a worker committed, by table.",
                &TableStatistics::requests);
    WriteTables(text, "pg_weir_coalesce_rows_total", "Rows that these wrote.", &TableStatistics::rows);
    WriteTables(text, "pg_weir_coalesce_batches_total", "Transactions of workers that wrote to the table.",
                &TableStatistics::batches);
    WriteTables(text, "pg_weir_coalesce_folded_total",
                "Updates that shared a row version with a later one of their batch.",
                &TableStatistics::folded);
    WriteTables(text, "pg_weir_coalesce_bytes_total", "Bytes that clients handed to workers.",
                &TableStatistics::bytes);
    text->Counter("pg_weir_coalesce_declined_total", "Statements that were not sent to a worker, by reason.");
    WriteTableReasons<Decline>(text, &TableStatistics::declined, DeclineName);
    text->Counter("pg_weir_coalesce_not_executed_total",
                  "Statements that a worker gave back to their session, by reason.");
    WriteTableReasons<GiveBack>(text, &TableStatistics::given_back, GiveBackName);
    text->Counter("pg_weir_coalesce_flushes_total", "Batches, by why they were begun.");
    WriteTableReasons<FlushReason>(text, &TableStatistics::flushes, FlushReasonName);
    text->HistogramOf("pg_weir_coalesce_batch_requests", "Statements in a batch.");
    text->Sizes(OfAllTables(&TableStatistics::batch_requests));
    text->HistogramOf("pg_weir_coalesce_wait_seconds",
                      "From handing a statement to a worker until its answer.");
    text->Durations(OfAllTables(&TableStatistics::waits));

    const SubmitShared &submits = shared->submits;
    text->Counter("pg_weir_submit_units_total", "Units of weir.submit() that a worker committed.");
    text->Count(Relaxed(submits.units));
    text->Counter("pg_weir_submit_rows_total", "Rows that these wrote.");
    text->Count(Relaxed(submits.rows));
    text->Counter("pg_weir_submit_batches_total", "Transactions of workers that committed units.");
    text->Count(Relaxed(submits.batches));
    text->Counter("pg_weir_submit_replayed_total", "Units answered by what is remembered of their key.");
    text->Count(Relaxed(submits.replayed));
    text->Counter("pg_weir_submit_in_place_total", "Units that were not given to a worker, by reason.");
    WriteReasons<Decline>(text, submits.in_place, DeclineName);
    text->Counter("pg_weir_submit_not_executed_total", "Units that a worker gave back, by reason.");
    WriteReasons<GiveBack>(text, submits.given_back, GiveBackName);
    text->HistogramOf("pg_weir_submit_batch_units", "Units in a batch.");
    snapshot = submits.batch_units.Snapshot();
    text->Sizes(snapshot);
    text->HistogramOf("pg_weir_submit_wait_seconds", "From handing a unit to a worker until its answer.");
    snapshot = submits.waits.Snapshot();
    text->Durations(snapshot);
}

// ---- the endpoint ---------------------------------------------------------------------------------

void WriteEndpoint(MetricsText *text)
{
    const HttpCounters &http = shared->http.counters;
    text->Counter("pg_weir_http_answers_total", "Answers of the HTTP endpoint, by the status's first digit.");
    constexpr const char *kClasses[] = {nullptr, nullptr, "2xx", nullptr, "4xx", "5xx"};
    for (size_t i = 0; i < 6; i++)
        if (kClasses[i] != nullptr)
            text->Count(Relaxed(http.answers[i]), {{"code", kClasses[i]}});
    text->Counter("pg_weir_http_connections_total", "Connections accepted.");
    text->Count(Relaxed(http.connections));
    text->Counter("pg_weir_http_evicted_total", "Connections that gave their place to a newer one.");
    text->Count(Relaxed(http.evicted));
    text->Counter("pg_weir_http_late_total", "Requests and answers that were not done in time.");
    text->Count(Relaxed(http.late));
    text->Gauge("pg_weir_http_connections", "Connections open now.");
    text->Count(http.open.load());
}

} // namespace

size_t WriteMetrics(char *buffer, size_t capacity)
{
    MetricsText text(buffer, capacity);
    WriteServer(&text);
    WriteTransactions(&text);
    WriteStartups(&text);
    WriteCoalescing(&text);
    WriteReplicas(&text);
    WriteEndpoint(&text);
    return text.Finish();
}

} // namespace weir

using namespace weir;

WEIR_SQL_FUNCTION(weir_metrics)
{
    RequireShared();
    auto *buffer = static_cast<char *>(palloc(kMetricsCapacity));
    const size_t length = WriteMetrics(buffer, kMetricsCapacity);
    PG_RETURN_TEXT_P(cstring_to_text_with_len(buffer, static_cast<int>(length)));
}

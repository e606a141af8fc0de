#include "coalesce/coalescing.hpp"

#include <initializer_list>

#include "pure_only.hpp"

namespace weir
{

namespace
{

struct DeclineText {
    const char *name;
    const char *detail;
};

// In the order of Decline.
constexpr DeclineText decline_texts[] = {
    {"none", "It can be coalesced."},
    {"alone", "Too few other sessions write to coalesced tables now."},
    {"no worker", "No coalescing worker runs for this database now."},
    {"stalled", "The coalescing worker has not taken a request for a second."},
    {"transaction block", "It is part of a larger transaction."},
    {"pipeline", "The client did not ask for the end of the transaction right after it."},
    {"nested", "It is executed by another statement, a function, or through a named portal."},
    {"isolation level", "The isolation level is above READ COMMITTED, or the transaction is read-only."},
    {"synchronous_commit", "synchronous_commit is off: there is no flush to share."},
    {"has xid", "The transaction has written something already."},
    {"statement", "It is not a plain INSERT of VALUES, or UPDATE or DELETE of one table."},
    {"key", "Its WHERE clause does not give all columns of a unique index by =."},
    {"expression", "It has an expression that only its own session can evaluate."},
    {"returning", "It has a RETURNING clause that needs what only its own session has."},
    {"on conflict", "It has ON CONFLICT DO UPDATE."},
    {"table", "The table, or a partition, is not a permanent heap table; or it has children; or it is "
              "partitioned, and the statement no INSERT."},
    {"trigger", "The table has a trigger, or a rule, or a foreign key that the statement concerns."},
    {"constraint", "The table has a deferrable or an exclusion constraint, or one that is not immutable."},
    {"generated", "The table has virtual generated columns, or one whose expression is not immutable."},
    {"row security", "The table has row-level security."},
    {"column", "It changes a column that is part of a unique index or a foreign key."},
    {"too large",
     "It is larger than a request may be, or the memory for large requests is full or not there yet."},
    {"row", "One of its rows, not the first, is wrong."},
    {"temporary tables", "Its session has used temporary tables, which a worker would not see."},
    {"given back",
     "A worker has just given back a unit of the session, for what the next one would have, too."},
    {"replication origin", "Its session has a replication origin, which a worker's commit would not have."}};
static_assert(sizeof(decline_texts) / sizeof(decline_texts[0]) == static_cast<size_t>(Decline::kCount));

// In the order of GiveBack.
constexpr const char *give_back_names[] = {"none",       "relation locked", "row locked", "error",
                                           "batch mate", "worker ending",   "withdrawn",  "settings",
                                           "too slow",   "statement"};
static_assert(sizeof(give_back_names) / sizeof(give_back_names[0]) == static_cast<size_t>(GiveBack::kCount));

} // namespace

const char *DeclineName(Decline why) noexcept
{
    return decline_texts[static_cast<size_t>(why)].name;
}

const char *DeclineDetail(Decline why) noexcept
{
    return decline_texts[static_cast<size_t>(why)].detail;
}

const char *GiveBackName(GiveBack why) noexcept
{
    return give_back_names[static_cast<size_t>(why)];
}

const char *FlushReasonName(FlushReason why) noexcept
{
    static constexpr const char *names[] = {"none",  "drained", "complete", "full",
                                            "delay", "queued",  "alone",    "ending"};
    static_assert(sizeof(names) / sizeof(names[0]) == static_cast<size_t>(FlushReason::kCount));
    return names[static_cast<size_t>(why)];
}

void TableStatistics::Reset() noexcept
{
    for (std::atomic<uint64_t> *counter :
         {&requests, &rows, &batches, &bytes, &folded, &queued, &queue_full, &failed})
        counter->store(0, std::memory_order_relaxed);
    for (std::atomic<uint64_t> &counter : declined)
        counter.store(0, std::memory_order_relaxed);
    for (std::atomic<uint64_t> &counter : given_back)
        counter.store(0, std::memory_order_relaxed);
    for (std::atomic<uint64_t> &counter : flushes)
        counter.store(0, std::memory_order_relaxed);
    batch_requests.Reset();
    waits.Reset();
}

} // namespace weir

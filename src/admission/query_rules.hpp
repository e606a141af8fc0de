#pragma once

// The rules that shed load by query digest: which queries may run how many times at once, or not at all.
//
// Who writes what. Rules are made, replaced, dropped and swept by writers, who hold rules_lock exclusively.
// What a rule says (limit, expiry, reason) and the index that finds it are read without a lock, under the
// seqlock `version`: odd while a writer is between two of its stores, which lasts microseconds. A reader that
// keeps meeting a writer is told kBusy, and comes back under rules_lock, shared.
//
// Places. An execution that a limit let in holds a place: (rule, generation). `word` keeps the generation and
// the number of places in one word, so that an execution that outlives its rule does not leave another one's.
// Dropping a rule forgets its places; replacing it keeps them. Executions that began before the rule are not
// counted.
//
// The file. Rules survive a restart in a file (rule_file.hpp) of
//     record = query_id:u64 created_at:i64 expires_at:i64 max_active:u32 reason_length:u32 reason[200]
// Counters are not in it.
//
// Pure: no PostgreSQL header, no clock, no system call. Times are TimestampTz: microseconds since 2000.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "admission/rule_file.hpp"

namespace weir
{

constexpr uint32_t kMaxQueryRules = 256;
constexpr uint32_t kMaxRuleActive = 262143; // as many as MAX_BACKENDS
constexpr size_t kMaxRuleReason = 200;      // bytes
constexpr uint32_t kBlocked = 0;            // a rule's max_active: nobody may run it
constexpr int64_t kNeverExpires = INT64_MAX;

// What a rule says. Its bytes are also its record in the file.
struct QueryRuleSpec {
    uint64_t query_id;   // never 0
    int64_t created_at;  // when it was made, or last replaced
    int64_t expires_at;  // not in force from then on; kNeverExpires
    uint32_t max_active; // 1..kMaxRuleActive, or kBlocked
    uint32_t reason_length;
    char reason[kMaxRuleReason]; // not terminated; zeroes after its end
};
static_assert(sizeof(QueryRuleSpec) == 232 && std::is_trivially_copyable_v<QueryRuleSpec>);

struct alignas(64) QueryRule {
    // Places held (low half), generation (high half). Anybody, by compare-and-swap.
    std::atomic<uint64_t> word;

    // Statistics; anybody, relaxed.
    std::atomic<uint64_t> hits;           // executions judged
    std::atomic<uint64_t> refused;        // of these; in observe mode, would have been
    std::atomic<int64_t> last_refused_at; // 0: never

    // A QueryRuleSpec in words; all zero: no rule. Seqlock.
    std::atomic<uint64_t> spec[sizeof(QueryRuleSpec) / sizeof(uint64_t)];
};

constexpr uint32_t kRuleIndexSize = 512; // half full at most, so that probes are short

// Zeroes are an empty table.
struct QueryRulesShared {
    std::atomic<uint32_t> count;   // rules in the table, expired ones that nobody has swept included
    std::atomic<uint32_t> version; // the seqlock
    // Open addressing by query id, linear probing: a rule's position + 1; 0: nothing. Rebuilt on removal.
    std::atomic<uint16_t> index[kRuleIndexSize];
    QueryRule rules[kMaxQueryRules];
};

// An execution's place under a limit.
struct RulePlace {
    uint32_t rule;
    uint32_t generation;
};

enum class RuleVerdict {
    kNone,    // no rule for this query
    kExpired, // there was one: the caller may sweep
    kBusy,    // a writer is at work: ask again under rules_lock
    kRun,     // a place is held
    kRefuse,  // the limit is reached, or the query is blocked: `spec` says which
};

struct RuleJudgement {
    RuleVerdict verdict;
    RulePlace place;    // kRun
    QueryRuleSpec spec; // kRefuse
};

// Counters of one rule, for a view.
struct QueryRuleStatus {
    QueryRuleSpec spec;
    uint32_t active;
    uint64_t hits;
    uint64_t refused;
    int64_t last_refused_at;
};

// ---- Anybody, without the lock ----

// False: the query has no rule. Counts nothing; what most executions come to know, and no more.
bool MayHaveRule(const QueryRulesShared &rules, uint64_t query_id) noexcept;

// Judges one execution and counts it. kRun takes a place, unless `take_place` is false. Under rules_lock, in
// whichever mode, never kBusy.
void JudgeQuery(QueryRulesShared *rules, uint64_t query_id, int64_t now, bool take_place,
                RuleJudgement *judgement) noexcept;

// Gives the place back. Does nothing when the rule has been dropped meanwhile.
void LeavePlace(QueryRulesShared *rules, RulePlace place) noexcept;

// ---- Under rules_lock; changes need it exclusive ----

// The rules in force at `now`, in table order. Returns how many.
uint32_t CopyRules(const QueryRulesShared &rules, int64_t now, QueryRuleSpec (&out)[kMaxQueryRules]) noexcept;

// False: no rule at this position, or an expired one.
bool RuleStatus(const QueryRulesShared &rules, uint32_t position, int64_t now, QueryRuleStatus *out) noexcept;

// Makes the query's rule, or replaces it and keeps its counters and places. False: the table is full.
bool SetRule(QueryRulesShared *rules, const QueryRuleSpec &spec) noexcept;

// False: there is none.
bool DropRule(QueryRulesShared *rules, uint64_t query_id) noexcept;

// Removes what has expired. Returns how many.
uint32_t SweepRules(QueryRulesShared *rules, int64_t now) noexcept;

// ---- The file ----

constexpr size_t kRuleFileMaxSize = RuleFileSize(sizeof(QueryRuleSpec), kMaxQueryRules);

// Returns the size of what it wrote.
size_t WriteRuleFile(const QueryRuleSpec *specs, uint32_t count, char (&out)[kRuleFileMaxSize]) noexcept;

// Null: `out` has the rules, *count of them. Otherwise what is wrong with the file, and *count is 0.
const char *ReadRuleFile(const char *bytes, size_t size, QueryRuleSpec (&out)[kMaxQueryRules],
                         uint32_t *count) noexcept;

} // namespace weir

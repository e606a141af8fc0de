#include "admission/query_rules.hpp"

#include <cstring>

#include "pure_only.hpp"

namespace weir
{

namespace
{

constexpr RuleFileFormat kFormat = {{'P', 'G', 'W', 'E', 'I', 'R', 'Q', 'R'},
                                    "it does not begin as a file of query rules",
                                    1,
                                    sizeof(QueryRuleSpec),
                                    kMaxQueryRules};
constexpr uint32_t kMaxTries = 1000; // far longer than a writer that runs needs

// The range of a TimestampTz that can be printed: 4714 BC to 294276 AD (datatype/timestamp.h).
constexpr int64_t kFirstTimestamp = INT64_C(-211813488000000000);
constexpr int64_t kEndTimestamp = INT64_C(9223371331200000000);

constexpr size_t kSpecWords = sizeof(QueryRuleSpec) / sizeof(uint64_t);
static_assert(sizeof(QueryRuleSpec) % sizeof(uint64_t) == 0 && offsetof(QueryRuleSpec, query_id) == 0);

constexpr uint64_t kGeneration = UINT64_C(1) << 32;

uint32_t ActiveOf(uint64_t word) noexcept
{
    return static_cast<uint32_t>(word);
}

uint32_t GenerationOf(uint64_t word) noexcept
{
    return static_cast<uint32_t>(word >> 32);
}

// Query ids are hashes already, but an administrator may type any number.
uint32_t HomeOf(uint64_t query_id) noexcept
{
    static_assert(kRuleIndexSize == 1u << 9);
    return static_cast<uint32_t>((query_id * UINT64_C(0x9E3779B97F4A7C15)) >> (64 - 9));
}

// ---- The seqlock ----
//
// Without fences, which ThreadSanitizer does not know: the data is stored with release and loaded with
// acquire, so that a reader who has seen one word of a change finds the version odd, or moved on.

void BeginWrite(QueryRulesShared *rules) noexcept
{
    rules->version.store(rules->version.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
}

void EndWrite(QueryRulesShared *rules) noexcept
{
    rules->version.store(rules->version.load(std::memory_order_relaxed) + 1, std::memory_order_release);
}

uint64_t RuleQueryId(const QueryRule &rule) noexcept
{
    return rule.spec[0].load(std::memory_order_acquire);
}

void LoadSpec(const QueryRule &rule, QueryRuleSpec *spec) noexcept
{
    uint64_t words[kSpecWords];
    for (size_t i = 0; i < kSpecWords; i++)
        words[i] = rule.spec[i].load(std::memory_order_acquire);
    memcpy(spec, words, sizeof(words));
}

void StoreSpec(QueryRule *rule, const QueryRuleSpec &spec) noexcept
{
    uint64_t words[kSpecWords];
    memcpy(words, &spec, sizeof(words));
    for (size_t i = 0; i < kSpecWords; i++)
        rule->spec[i].store(words[i], std::memory_order_release);
}

// ---- The index ----

// The rule's position; kMaxQueryRules: none. What a reader learns here holds if the version has not moved.
uint32_t Probe(const QueryRulesShared &rules, uint64_t query_id) noexcept
{
    const uint32_t home = HomeOf(query_id);
    for (uint32_t i = 0; i < kRuleIndexSize; i++) {
        const uint32_t entry = rules.index[(home + i) % kRuleIndexSize].load(std::memory_order_acquire);
        if (entry == 0)
            break;
        if (RuleQueryId(rules.rules[entry - 1]) == query_id)
            return entry - 1;
    }
    return kMaxQueryRules;
}

void AddToIndex(QueryRulesShared *rules, uint32_t position) noexcept
{
    const uint32_t home = HomeOf(RuleQueryId(rules->rules[position]));
    for (uint32_t i = 0; i < kRuleIndexSize; i++) {
        std::atomic<uint16_t> &entry = rules->index[(home + i) % kRuleIndexSize];
        if (entry.load(std::memory_order_relaxed) != 0)
            continue;
        entry.store(static_cast<uint16_t>(position + 1), std::memory_order_release);
        return;
    }
}

// Instead of tombstones: removal is rare, and probes stay short.
void RebuildIndex(QueryRulesShared *rules) noexcept
{
    for (std::atomic<uint16_t> &entry : rules->index)
        entry.store(0, std::memory_order_release);
    for (uint32_t i = 0; i < kMaxQueryRules; i++)
        if (RuleQueryId(rules->rules[i]) != 0)
            AddToIndex(rules, i);
}

struct Finding {
    bool settled; // false: a writer was at work
    uint32_t position;
    uint64_t word;
};

// The rule as it was at one moment. `spec` may be null.
Finding Find(const QueryRulesShared &rules, uint64_t query_id, QueryRuleSpec *spec) noexcept
{
    for (uint32_t i = 0; i < kMaxTries; i++) {
        const uint32_t version = rules.version.load(std::memory_order_acquire);
        if (version % 2 != 0)
            continue;
        Finding finding = {true, Probe(rules, query_id), 0};
        if (finding.position != kMaxQueryRules) {
            const QueryRule &rule = rules.rules[finding.position];
            finding.word = rule.word.load(std::memory_order_acquire);
            if (spec != nullptr)
                LoadSpec(rule, spec);
        }
        if (rules.version.load(std::memory_order_relaxed) == version)
            return finding;
    }
    return {false, kMaxQueryRules, 0};
}

enum class Entry { kTaken, kFull, kGone };

// `word` is what Find() saw: its generation is the rule that was found.
Entry TakePlace(QueryRule *rule, uint64_t word, uint32_t max_active, bool take) noexcept
{
    const uint32_t generation = GenerationOf(word);
    while (ActiveOf(word) < max_active) {
        if (!take || rule->word.compare_exchange_weak(word, word + 1, std::memory_order_acq_rel))
            return Entry::kTaken;
        if (GenerationOf(word) != generation)
            return Entry::kGone;
    }
    return Entry::kFull;
}

// Frees the entry. The index still names it: rebuild it before the write ends.
void Remove(QueryRulesShared *rules, QueryRule *rule) noexcept
{
    const uint64_t word = rule->word.load(std::memory_order_relaxed);
    StoreSpec(rule, QueryRuleSpec{});
    // Only writers move the generation, and a place taken or left meanwhile fails its compare-and-swap.
    rule->word.store((word & ~(kGeneration - 1)) + kGeneration, std::memory_order_release);
    rules->count.fetch_sub(1, std::memory_order_release);
}

bool Expired(const QueryRuleSpec &spec, int64_t now) noexcept
{
    return spec.expires_at <= now;
}

uint32_t FreePosition(const QueryRulesShared &rules) noexcept
{
    uint32_t position = 0;
    while (position < kMaxQueryRules && RuleQueryId(rules.rules[position]) != 0)
        position++;
    return position;
}

// ---- The file ----

bool IsPossible(const QueryRuleSpec &spec) noexcept
{
    if (spec.query_id == 0 || spec.max_active > kMaxRuleActive || spec.reason_length > kMaxRuleReason)
        return false;
    for (size_t i = 0; i < kMaxRuleReason; i++)
        if ((spec.reason[i] != '\0') != (i < spec.reason_length))
            return false;
    if (spec.created_at < kFirstTimestamp || spec.created_at >= kEndTimestamp)
        return false;
    return spec.expires_at == kNeverExpires ||
           (spec.expires_at > spec.created_at && spec.expires_at < kEndTimestamp);
}

bool ListsTwice(const QueryRuleSpec *specs, uint32_t count) noexcept
{
    for (uint32_t i = 0; i < count; i++)
        for (uint32_t j = 0; j < i; j++)
            if (specs[i].query_id == specs[j].query_id)
                return true;
    return false;
}

} // namespace

bool MayHaveRule(const QueryRulesShared &rules, uint64_t query_id) noexcept
{
    const Finding finding = Find(rules, query_id, nullptr);
    return !finding.settled || finding.position != kMaxQueryRules;
}

void JudgeQuery(QueryRulesShared *rules, uint64_t query_id, int64_t now, bool take_place,
                RuleJudgement *judgement) noexcept
{
    for (uint32_t i = 0; i < kMaxTries; i++) {
        const Finding finding = Find(*rules, query_id, &judgement->spec);
        if (!finding.settled)
            break;
        if (finding.position == kMaxQueryRules) {
            judgement->verdict = RuleVerdict::kNone;
            return;
        }
        if (Expired(judgement->spec, now)) {
            judgement->verdict = RuleVerdict::kExpired;
            return;
        }
        QueryRule *rule = &rules->rules[finding.position];
        const Entry entry = TakePlace(rule, finding.word, judgement->spec.max_active, take_place);
        if (entry == Entry::kGone)
            continue;
        rule->hits.fetch_add(1, std::memory_order_relaxed);
        judgement->verdict = RuleVerdict::kRun;
        judgement->place = {finding.position, GenerationOf(finding.word)};
        if (entry == Entry::kFull) {
            rule->refused.fetch_add(1, std::memory_order_relaxed);
            rule->last_refused_at.store(now, std::memory_order_relaxed);
            judgement->verdict = RuleVerdict::kRefuse;
        }
        return;
    }
    judgement->verdict = RuleVerdict::kBusy;
}

void LeavePlace(QueryRulesShared *rules, RulePlace place) noexcept
{
    std::atomic<uint64_t> &word = rules->rules[place.rule].word;
    uint64_t seen = word.load(std::memory_order_relaxed);
    while (GenerationOf(seen) == place.generation && ActiveOf(seen) > 0)
        if (word.compare_exchange_weak(seen, seen - 1, std::memory_order_acq_rel))
            return;
}

uint32_t CopyRules(const QueryRulesShared &rules, int64_t now, QueryRuleSpec (&out)[kMaxQueryRules]) noexcept
{
    uint32_t count = 0;
    for (const QueryRule &rule : rules.rules) {
        LoadSpec(rule, &out[count]);
        if (out[count].query_id != 0 && !Expired(out[count], now))
            count++;
    }
    return count;
}

bool RuleStatus(const QueryRulesShared &rules, uint32_t position, int64_t now, QueryRuleStatus *out) noexcept
{
    const QueryRule &rule = rules.rules[position];
    LoadSpec(rule, &out->spec);
    out->active = ActiveOf(rule.word.load(std::memory_order_relaxed));
    out->hits = rule.hits.load(std::memory_order_relaxed);
    out->refused = rule.refused.load(std::memory_order_relaxed);
    out->last_refused_at = rule.last_refused_at.load(std::memory_order_relaxed);
    return out->spec.query_id != 0 && !Expired(out->spec, now);
}

bool SetRule(QueryRulesShared *rules, const QueryRuleSpec &spec) noexcept
{
    const uint32_t present = Probe(*rules, spec.query_id);
    const uint32_t position = present != kMaxQueryRules ? present : FreePosition(*rules);
    if (position == kMaxQueryRules)
        return false;

    QueryRule *rule = &rules->rules[position];
    BeginWrite(rules);
    StoreSpec(rule, spec);
    if (present == kMaxQueryRules) {
        rule->hits.store(0, std::memory_order_relaxed);
        rule->refused.store(0, std::memory_order_relaxed);
        rule->last_refused_at.store(0, std::memory_order_relaxed);
        AddToIndex(rules, position);
        rules->count.fetch_add(1, std::memory_order_release);
    }
    EndWrite(rules);
    return true;
}

bool DropRule(QueryRulesShared *rules, uint64_t query_id) noexcept
{
    const uint32_t position = Probe(*rules, query_id);
    if (position == kMaxQueryRules)
        return false;
    BeginWrite(rules);
    Remove(rules, &rules->rules[position]);
    RebuildIndex(rules);
    EndWrite(rules);
    return true;
}

uint32_t SweepRules(QueryRulesShared *rules, int64_t now) noexcept
{
    uint32_t swept = 0;
    BeginWrite(rules);
    for (QueryRule &rule : rules->rules) {
        QueryRuleSpec spec;
        LoadSpec(rule, &spec);
        if (spec.query_id == 0 || !Expired(spec, now))
            continue;
        Remove(rules, &rule);
        swept++;
    }
    if (swept > 0)
        RebuildIndex(rules);
    EndWrite(rules);
    return swept;
}

size_t WriteRuleFile(const QueryRuleSpec *specs, uint32_t count, char (&out)[kRuleFileMaxSize]) noexcept
{
    return WriteRecords(kFormat, specs, count, out);
}

const char *ReadRuleFile(const char *bytes, size_t size, QueryRuleSpec (&out)[kMaxQueryRules],
                         uint32_t *count) noexcept
{
    uint32_t claimed;
    *count = 0;
    const char *trouble = ReadRecords(kFormat, bytes, size, out, &claimed);
    if (trouble != nullptr)
        return trouble;
    for (uint32_t i = 0; i < claimed; i++)
        if (!IsPossible(out[i]))
            return "it has a rule that cannot be";
    if (ListsTwice(out, claimed))
        return "it lists a query twice";
    *count = claimed;
    return nullptr;
}

} // namespace weir

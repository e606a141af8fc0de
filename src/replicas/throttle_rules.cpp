#include "replicas/throttle_rules.hpp"

#include <cstring>

#include "admission/class_map.hpp"

#include "pure_only.hpp"

namespace weir
{

namespace
{

constexpr int64_t kSecond = 1000000;
constexpr int64_t kShortestRetryUs = 100000;
constexpr int64_t kLongestRetryUs = 30 * kSecond;

constexpr RuleFileFormat kFormat = {{'P', 'G', 'W', 'E', 'I', 'R', 'T', 'R'},
                                    "it does not begin as a file of throttle rules",
                                    1,
                                    sizeof(ThrottleRuleSpec),
                                    kMaxThrottleRules};

bool IsPossible(const ThrottleRuleSpec &spec) noexcept
{
    size_t length = 0;
    while (length < kThrottleAppSize && spec.pattern[length] != '\0')
        length++;
    if (length == 0 || length == kThrottleAppSize)
        return false;
    for (size_t i = length; i < kThrottleAppSize; i++)
        if (spec.pattern[i] != '\0')
            return false;
    return spec.ratio >= 0 && spec.ratio <= 1 && spec.exempt <= 1;
}

// A job that comes back then will probably be let through: what is too much is worked off by then.
int64_t RetryAfter(int64_t surplus_us) noexcept
{
    if (surplus_us < kShortestRetryUs)
        return kShortestRetryUs;
    return surplus_us < kLongestRetryUs ? surplus_us : kLongestRetryUs;
}

} // namespace

const char *ThrottleCodeName(ThrottleCode code) noexcept
{
    switch (code) {
    case ThrottleCode::kOk:
        return "ok";
    case ThrottleCode::kExempt:
        return "exempt";
    case ThrottleCode::kLagging:
        return "lagging";
    case ThrottleCode::kDenied:
        return "denied";
    case ThrottleCode::kUnknown:
        return "unknown";
    case ThrottleCode::kStale:
        return "stale";
    case ThrottleCode::kStandby:
        return "standby";
    }
    return "unknown";
}

bool ThrottleRules::Set(const ThrottleRuleSpec &spec, int64_t now_us) noexcept
{
    DropExpired(now_us);
    ThrottleRule *place = nullptr;
    for (ThrottleRule &rule : rules) {
        if (rule.in_use && strcmp(rule.pattern, spec.pattern) == 0) {
            place = &rule;
            break;
        }
        if (!rule.in_use && place == nullptr)
            place = &rule;
    }
    if (place == nullptr)
        return false;
    if (!place->in_use) {
        place->checks.store(0);
        place->denied.store(0);
        memcpy(place->pattern, spec.pattern, kThrottleAppSize);
        count.fetch_add(1);
    }
    place->in_use = true;
    place->exempt = spec.exempt != 0;
    place->ratio = spec.ratio;
    place->expires_us = spec.expires_us;
    return true;
}

bool ThrottleRules::Drop(const char *pattern) noexcept
{
    for (ThrottleRule &rule : rules)
        if (rule.in_use && strcmp(rule.pattern, pattern) == 0) {
            rule.in_use = false;
            count.fetch_sub(1);
            return true;
        }
    return false;
}

void ThrottleRules::DropExpired(int64_t now_us) noexcept
{
    for (ThrottleRule &rule : rules)
        if (rule.in_use && rule.expires_us <= now_us) {
            rule.in_use = false;
            count.fetch_sub(1);
        }
}

ThrottleRule *ThrottleRules::Find(const char *app, int64_t now_us) noexcept
{
    ThrottleRule *found = nullptr;
    for (ThrottleRule &rule : rules) {
        if (!rule.in_use || rule.expires_us <= now_us || !GlobMatches(rule.pattern, app))
            continue;
        if (rule.exempt)
            return &rule;
        if (found == nullptr || rule.ratio > found->ratio)
            found = &rule;
    }
    return found;
}

uint32_t ThrottleRules::Copy(ThrottleRuleSpec (&out)[kMaxThrottleRules], int64_t now_us) const noexcept
{
    uint32_t copied = 0;
    for (const ThrottleRule &rule : rules) {
        if (!rule.in_use || rule.expires_us <= now_us)
            continue;
        ThrottleRuleSpec &spec = out[copied++];
        spec = {};
        strncpy(spec.pattern, rule.pattern, kThrottleAppSize - 1);
        spec.ratio = rule.ratio;
        spec.expires_us = rule.expires_us;
        spec.exempt = rule.exempt;
    }
    return copied;
}

// ---- the file

size_t WriteThrottleFile(const ThrottleRuleSpec *specs, uint32_t count,
                         char (&out)[kThrottleFileMaxSize]) noexcept
{
    return WriteRecords(kFormat, specs, count, out);
}

const char *ReadThrottleFile(const char *bytes, size_t size, ThrottleRuleSpec (&out)[kMaxThrottleRules],
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
    *count = claimed;
    return nullptr;
}

bool DeniedByRatio(ThrottleRule *rule) noexcept
{
    const auto n = static_cast<double>(rule->checks.fetch_add(1, std::memory_order_relaxed));
    const auto before = static_cast<uint64_t>(n * rule->ratio);
    const auto after = static_cast<uint64_t>((n + 1) * rule->ratio);
    if (after == before)
        return false;
    rule->denied.fetch_add(1, std::memory_order_relaxed);
    return true;
}

ThrottleAnswer JudgeCheck(const ThrottleFacts &facts, ThrottleRule *rule) noexcept
{
    ThrottleAnswer answer = {ThrottleCode::kOk, false, facts.lag_us, facts.threshold_us, 0};
    const bool late = facts.threshold_us > 0 && facts.lag_us >= facts.threshold_us;
    const bool much = facts.threshold_bytes > 0 && facts.lag_bytes >= facts.threshold_bytes;
    if (facts.threshold_us <= 0 || (much && !late)) {
        answer.in_bytes = true;
        answer.value = facts.lag_bytes;
        answer.threshold = facts.threshold_bytes;
    }
    if (rule != nullptr && rule->exempt) {
        rule->checks.fetch_add(1, std::memory_order_relaxed);
        answer.code = ThrottleCode::kExempt;
        return answer;
    }
    answer.retry_after_us = kSecond;
    if (facts.in_recovery)
        answer.code = ThrottleCode::kStandby;
    else if (!facts.fresh)
        answer.code = ThrottleCode::kStale;
    else if (!facts.known)
        answer.code = ThrottleCode::kUnknown;
    else if (rule != nullptr && DeniedByRatio(rule))
        answer.code = ThrottleCode::kDenied;
    else if (late || much) {
        answer.code = ThrottleCode::kLagging;
        const int64_t surplus_us =
            late ? facts.lag_us - facts.threshold_us
            : facts.capacity > 0
                ? static_cast<int64_t>(static_cast<double>(facts.lag_bytes - facts.threshold_bytes) /
                                       static_cast<double>(facts.capacity) * 1e6)
                : kSecond;
        answer.retry_after_us = RetryAfter(surplus_us);
    } else
        answer.retry_after_us = 0;
    return answer;
}

} // namespace weir

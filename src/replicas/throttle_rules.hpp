#pragma once

// weir.check_throttle(): what a job is told, and the rules for some of them.
//
// A rule is of the applications whose name matches its pattern. It denies a share of their checks whatever
// the lag is, or exempts them; and it ends by itself. Where several match, an exemption goes first, then the
// highest share.
//
// Rules are changed under flow_lock; checks read them under it, shared, and count atomically. They survive a
// restart in a file (admission/rule_file.hpp) of
//     record = pattern[64] ratio:f64 expires_at:i64 exempt:u64
// Counters are not in it.
//
// Pure: no PostgreSQL header, no clock, no system call.

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "admission/rule_file.hpp"

namespace weir
{

constexpr uint32_t kMaxThrottleRules = 64;
constexpr uint32_t kThrottleAppSize = 64;

struct ThrottleRule {
    bool in_use;
    bool exempt;
    double ratio; // share of the checks that is denied, 0..1
    char pattern[kThrottleAppSize];
    int64_t expires_us;
    std::atomic<uint64_t> checks; // that it matched and decided
    std::atomic<uint64_t> denied;
};

// What a rule says.
struct ThrottleRuleSpec {
    char pattern[kThrottleAppSize]; // zeroes after its end
    double ratio;
    int64_t expires_us;
    uint64_t exempt; // 0 or 1
};
static_assert(sizeof(ThrottleRuleSpec) == kThrottleAppSize + 24, "no padding goes into the file");

struct ThrottleRules {
    std::atomic<uint32_t> count; // rules in use, expired or not; read without the lock
    ThrottleRule rules[kMaxThrottleRules];

    // Under the lock, exclusive. False: there is no room.
    bool Set(const ThrottleRuleSpec &spec, int64_t now_us) noexcept;
    // False: there was none of that pattern.
    bool Drop(const char *pattern) noexcept;
    void DropExpired(int64_t now_us) noexcept;

    // Under the lock, shared. The rule that decides; null: none.
    ThrottleRule *Find(const char *app, int64_t now_us) noexcept;

    // Under the lock. Those in force; returns how many.
    uint32_t Copy(ThrottleRuleSpec (&out)[kMaxThrottleRules], int64_t now_us) const noexcept;
};

// ---- the file

constexpr size_t kThrottleFileMaxSize = RuleFileSize(sizeof(ThrottleRuleSpec), kMaxThrottleRules);

// Returns the size of what it wrote.
size_t WriteThrottleFile(const ThrottleRuleSpec *specs, uint32_t count,
                         char (&out)[kThrottleFileMaxSize]) noexcept;

// Null: `out` has the rules, *count of them. Otherwise what is wrong with the file, and *count is 0.
const char *ReadThrottleFile(const char *bytes, size_t size, ThrottleRuleSpec (&out)[kMaxThrottleRules],
                             uint32_t *count) noexcept;

// Whether this check is one of those that are denied: evenly spread, no dice.
bool DeniedByRatio(ThrottleRule *rule) noexcept;

enum class ThrottleCode : uint32_t {
    kOk,
    kExempt,  // allowed by a rule, whatever the lag is
    kLagging, // the lag is at the threshold or beyond
    kDenied,  // by a rule
    kUnknown, // nothing is known yet: the server has just started, or was just promoted
    kStale,   // nobody has looked lately
    kStandby, // this server is a standby
};
constexpr uint32_t kThrottleCodes = 7;

const char *ThrottleCodeName(ThrottleCode code) noexcept;
inline bool IsAllowed(ThrottleCode code) noexcept
{
    return code == ThrottleCode::kOk || code == ThrottleCode::kExempt;
}

// What the sampler last saw, and what is allowed.
struct ThrottleFacts {
    bool fresh;
    bool in_recovery;
    bool known;
    int64_t lag_us, threshold_us;       // threshold 0: the lag in time does not matter
    int64_t lag_bytes, threshold_bytes; // the same in bytes
    int64_t capacity;                   // bytes per second that the slowest replays; 0: not known
};

struct ThrottleAnswer {
    ThrottleCode code;
    bool in_bytes; // value and threshold are bytes, not microseconds
    int64_t value;
    int64_t threshold;
    int64_t retry_after_us; // 0: allowed
};

// `rule` may be null.
ThrottleAnswer JudgeCheck(const ThrottleFacts &facts, ThrottleRule *rule) noexcept;

} // namespace weir

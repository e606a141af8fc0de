#pragma once

// The text of weir.classes: which workload classes there are, and each one's share and limits.
//
//     classes  = [ entry { ";" entry } [ ";" ] ]
//     entry    = name ":" { setting }               settings are separated by blanks or commas
//     setting  = key "=" value                      blanks around "=" are fine
//     name     = [a-z_][a-z0-9_$-]{0,62}            upper case is folded, as in SQL identifiers
//
//     key            value                                   when absent
//     weight         1..1000                                 1
//     reserved       0..262143                               0
//     max_active     0..262143                               0: no limit of its own
//     queue_timeout  0..2147483647 ms; units ms s min h d    inherits weir.queue_timeout (0 given: no bound)
//     queue_size     0..262143                               0: inherits weir.queue_size
//     max_startups, startup_rate, startup_burst  0..262143   0: none of its own
//
// Example: interactive: weight=8 reserved=2; batch: weight=1 max_active=4 queue_timeout=5min
//
// "default" may be listed: that tunes the class of everybody who has no other.
//
// Pure: no PostgreSQL header, no clock, no system call.

#include <cstdint>
#include <type_traits>

#include "admission/spec_text.hpp"

namespace weir
{

constexpr uint32_t kMaxClasses = 32; // with the default class, listed or not
constexpr char kDefaultClassName[] = "default";

// Counts of sessions and slots end where PostgreSQL's MAX_BACKENDS does.
constexpr uint32_t kMaxSpecCount = 262143;
constexpr uint32_t kMaxClassWeight = 1000;

struct ClassSpec {
    char name[kClassNameSize]; // folded, NUL-terminated, never empty
    uint32_t weight;           // share of the slots when several classes wait
    uint32_t reserved;         // slots that only this class may use
    uint32_t max_active;       // 0: no limit of its own
    uint32_t queue_timeout_ms; // 0: no bound; at most INT32_MAX; means nothing unless queue_timeout_set
    bool queue_timeout_set;    // false: inherits weir.queue_timeout
    uint32_t queue_size;       // 0: inherits weir.queue_size
    uint32_t max_startups;     // 0: none of its own
    uint32_t startup_rate;     // per second; 0: none of its own
    uint32_t startup_burst;    // 0: none of its own
};

// In the order of the text; names are unique.
struct ClassSpecs {
    uint32_t count;
    ClassSpec specs[kMaxClasses];
};

static_assert(std::is_trivially_copyable_v<ClassSpecs> && std::is_standard_layout_v<ClassSpecs>);

// False: `error` says where and why, and `out` is empty. A null or blank text lists no class, which is no
// error.
bool ParseClassSpecs(const char *text, ClassSpecs *out, ParseError *error) noexcept;

// One class name alone, as in weir.class: blanks around it are dropped, upper case is folded. Blank text: an
// empty name.
bool ParseClassName(const char *text, char (&name)[kClassNameSize], ParseError *error) noexcept;

// The class of that (folded) name, or null.
const ClassSpec *FindClassSpec(const ClassSpecs &specs, const char *name) noexcept;

// The same classes as the transaction gate and as the connection gate see them. To the latter, max_startups
// is what max_active is to transactions; queue_timeout, queue_size and reserved are of transactions alone. If
// there is room, it has one class more, of logins that fail.
constexpr char kFailedLoginClassName[] = "failed_login";
ClassSpecs SpecsOfTransactions(const ClassSpecs &specs) noexcept;
ClassSpecs SpecsOfStartups(const ClassSpecs &specs) noexcept;

// Sum of all `reserved`: at or past the limit nobody else would ever run, so the caller should warn.
uint32_t TotalReserved(const ClassSpecs &specs) noexcept;

} // namespace weir

#pragma once

// The text of weir.class_map: which class a session gets when weir.class does not say.
//
//     map       = [ rule { ";" rule } [ ";" ] ]           the first rule that matches wins
//     rule      = condition { condition } "=>" class      conditions are separated by blanks or commas; all
//     must hold condition = key "=" pattern                         each key at most once in a rule key =
//     role | database | application_name | address class     = a name as in weir.classes; upper case is
//     folded
//
// A pattern is a case-sensitive glob that must match the whole value: `*` stands for any bytes, `?` for one
// character (of UTF-8). In double quotes it may contain blanks, commas, semicolons and "=>", and `""` for a
// quote; `*` and `?` keep their meaning there. `""` alone matches an empty value.
//
// An address is an IPv4 or IPv6 address or network (10.0.0.0/8, fe80::/10), `local` for Unix sockets, or `*`.
// IPv4 written as IPv6 (::ffff:10.0.0.1) is IPv4, in a rule and in a session: `::/0` does not match it,
// `0.0.0.0/0` does.
//
// Example: application_name=report* => batch; database=crm, role=web* => interactive; address=10.0.0.0/8 =>
// internal
//
// Pure: no PostgreSQL header, no clock, no system call.

#include <cstdint>
#include <type_traits>

#include "admission/address.hpp"
#include "admission/spec_text.hpp"

namespace weir
{

constexpr uint32_t kMaxClassRules = 64;
constexpr uint32_t kPatternArenaSize = 4096; // all patterns together, each with its NUL

// What rules can ask about. A null string counts as empty; an unknown address matches `*` only.
struct SessionIdentity {
    const char *role;
    const char *database;
    const char *application_name;
    Address address;
};

struct ClassRule {
    // Offsets into the arena; 0: no such condition.
    uint16_t role;
    uint16_t database;
    uint16_t application_name;
    uint8_t prefix_bits; // of `network`: 0..32 or 0..128
    Address network;     // kNone: any address
    char class_name[kClassNameSize];
};

// Offsets instead of pointers: it may be copied, and live in shared memory. Zeroes are an empty map.
struct ClassMap {
    uint32_t count;
    uint32_t arena_used;
    ClassRule rules[kMaxClassRules];
    char arena[kPatternArenaSize];
};

static_assert(std::is_trivially_copyable_v<ClassMap> && std::is_standard_layout_v<ClassMap>);
static_assert(kPatternArenaSize <= UINT16_MAX);

// False: `error` says where and why, and `out` is empty. A null or blank text is an empty map.
// Whether the classes exist is the caller's question: weir.classes may change after this text did.
bool ParseClassMap(const char *text, ClassMap *out, ParseError *error) noexcept;

// The class of the first rule that matches, or null. The pointer is into `map`.
const char *MatchClass(const ClassMap &map, const SessionIdentity &session) noexcept;

// Whether SET application_name can move a session to another class.
bool UsesApplicationName(const ClassMap &map) noexcept;

// Whether all of `text` matches. Takes at most |pattern| * |text| steps, whatever the pattern.
bool GlobMatches(const char *pattern, const char *text) noexcept;

} // namespace weir

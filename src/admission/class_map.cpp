#include "admission/class_map.hpp"

#include <arpa/inet.h>
#include <cstring>

#include "pure_only.hpp"

namespace weir
{

namespace
{

uint8_t FamilyBits(AddressFamily family) noexcept
{
    return family == AddressFamily::kV4 ? 32 : 128;
}

// ---- Reading patterns ----

// Appends one byte to the pattern that grows at the arena's end; `start` is where the pattern stands in the
// text.
bool Append(SpecReader *in, ClassMap *map, uint32_t start, char c) noexcept
{
    if (map->arena_used == kPatternArenaSize)
        return in->FailAt(start, "expected at most %u bytes of patterns, counting one more for each",
                          kPatternArenaSize - 1);
    map->arena[map->arena_used++] = c;
    return true;
}

bool ReadQuoted(SpecReader *in, ClassMap *map, uint32_t start) noexcept
{
    in->Advance();
    while (!in->AtEnd()) {
        if (in->Take('"') && in->Peek() != '"')
            return true;
        if (!Append(in, map, start, in->Peek()))
            return false;
        in->Advance();
    }
    return in->FailAt(start, "expected a closing \" for this pattern");
}

bool ReadBare(SpecReader *in, ClassMap *map, uint32_t start) noexcept
{
    while (!in->AtEnd() && !SpecReader::IsBlank(in->Peek()) && in->Peek() != ',' && in->Peek() != ';' &&
           !in->AtArrow()) {
        if (in->Peek() == '"')
            return in->Fail("expected double quotes around the whole pattern, and \"\" for a quote in it");
        if (!Append(in, map, start, in->Peek()))
            return false;
        in->Advance();
    }
    if (in->Position() == start)
        return in->Fail("expected a pattern, such as report*, or \"\" for an empty value");
    return true;
}

// Reads a pattern to the arena's end and says where it begins there.
bool ReadPattern(SpecReader *in, ClassMap *map, uint16_t *offset) noexcept
{
    const uint32_t start = in->Position();

    *offset = static_cast<uint16_t>(map->arena_used);
    return (in->Peek() == '"' ? ReadQuoted(in, map, start) : ReadBare(in, map, start)) &&
           Append(in, map, start, '\0');
}

// ---- Reading addresses ----

// Clears the bits of an address past its first `prefix_bits`. Returns whether any was set.
bool ClearHostBits(Address *address, uint8_t prefix_bits) noexcept
{
    bool any = false;

    for (uint32_t i = 0; i < FamilyBits(address->family) / 8u; i++) {
        const uint32_t first_bit = i * 8;
        const uint32_t network_bits = prefix_bits <= first_bit ? 0 : prefix_bits - first_bit;
        const uint8_t mask = static_cast<uint8_t>(network_bits >= 8 ? 0xff : 0xff00u >> network_bits);

        any = any || (address->bytes[i] & ~mask) != 0;
        address->bytes[i] &= mask;
    }
    return any;
}

// The bits after the slash; `text` is what stands there.
bool ParsePrefix(const char *text, uint8_t max, uint8_t *prefix_bits) noexcept
{
    uint32_t bits = 0;
    size_t length = 0;

    for (; text[length] >= '0' && text[length] <= '9' && length < 3; length++)
        bits = bits * 10 + static_cast<uint32_t>(text[length] - '0');
    if (length == 0 || text[length] != '\0' || bits > max)
        return false;
    *prefix_bits = static_cast<uint8_t>(bits);
    return true;
}

// `text` is one address pattern without blanks, `start` its position in the setting.
bool ParseNetwork(SpecReader *in, const char *text, uint32_t start, ClassRule *rule) noexcept
{
    const char *slash = strchr(text, '/');
    const size_t length = slash != nullptr ? static_cast<size_t>(slash - text) : strlen(text);
    char host[INET6_ADDRSTRLEN];
    Address network = {};

    if (length < sizeof(host)) {
        memcpy(host, text, length);
        host[length] = '\0';
        if (inet_pton(AF_INET, host, network.bytes) == 1)
            network.family = AddressFamily::kV4;
        else if (inet_pton(AF_INET6, host, network.bytes) == 1)
            network.family = AddressFamily::kV6;
    }
    if (network.family == AddressFamily::kNone)
        return in->FailAt(
            start,
            "expected an IPv4 or IPv6 address or network such as 10.0.0.0/8 or fe80::/10, local, or *");

    uint8_t prefix_bits = FamilyBits(network.family);
    if (slash != nullptr && !ParsePrefix(slash + 1, prefix_bits, &prefix_bits))
        return in->FailAt(start + static_cast<uint32_t>(length) + 1, "expected a network length from 0 to %u",
                          prefix_bits);
    if (ClearHostBits(&network, prefix_bits)) {
        const int family = network.family == AddressFamily::kV4 ? AF_INET : AF_INET6;
        inet_ntop(family, network.bytes, host, sizeof(host));
        return in->FailAt(start, "the address has bits set past its network length: did you mean %s/%u?",
                          host, prefix_bits);
    }
    if (IsMappedV4(network))
        prefix_bits = static_cast<uint8_t>(prefix_bits - 96);
    rule->network = UnmapV4(network);
    rule->prefix_bits = prefix_bits;
    return true;
}

bool ReadAddress(SpecReader *in, ClassMap *map, ClassRule *rule) noexcept
{
    const uint32_t quote = in->Peek() == '"' ? 1 : 0;
    const uint32_t start = in->Position() + quote;
    uint16_t offset;

    if (!ReadPattern(in, map, &offset))
        return false;
    map->arena_used = offset; // only needed until it is parsed

    const char *text = map->arena + offset;
    if (strcmp(text, "*") == 0) {
        rule->network.family = AddressFamily::kNone;
        return true;
    }
    if (strcmp(text, "local") == 0) {
        rule->network.family = AddressFamily::kLocal;
        return true;
    }
    return ParseNetwork(in, text, start, rule);
}

// ---- Reading rules ----

constexpr const char *kKeys[] = {"role", "database", "application_name", "address"};
constexpr char kKeyList[] = "role, database, application_name or address";
constexpr size_t kKeyCount = sizeof(kKeys) / sizeof(kKeys[0]);

// Reads `key = pattern`. `seen` has a bit for each key that this rule already asks about.
bool ParseCondition(SpecReader *in, ClassMap *map, ClassRule *rule, uint32_t *seen) noexcept
{
    const uint32_t key_at = in->Position();
    char key[kClassNameSize];
    size_t index = 0;

    if (!in->ReadIdentifier(kKeyList, key))
        return false;
    while (index < kKeyCount && strcmp(kKeys[index], key) != 0)
        index++;
    if (index == kKeyCount)
        return in->FailAt(key_at, "unknown key \"%.24s\": expected %s", key, kKeyList);
    if (*seen & (1u << index))
        return in->FailAt(key_at, "%s is given twice in one rule: write two rules to match either", key);
    *seen |= 1u << index;

    in->SkipBlanks();
    if (in->AtArrow() || !in->Take('='))
        return in->Fail("expected = and a pattern after %s", key);
    in->SkipBlanks();
    switch (index) {
    case 0:
        return ReadPattern(in, map, &rule->role);
    case 1:
        return ReadPattern(in, map, &rule->database);
    case 2:
        return ReadPattern(in, map, &rule->application_name);
    default:
        return ReadAddress(in, map, rule);
    }
}

// Reads `conditions => class`, up to the `;` or the end of the text.
bool ParseRule(SpecReader *in, ClassMap *map) noexcept
{
    ClassRule rule = {};
    uint32_t seen = 0;

    if (map->count == kMaxClassRules)
        return in->Fail("expected at most %u rules", kMaxClassRules);
    do {
        if (!ParseCondition(in, map, &rule, &seen))
            return false;
        in->SkipBlanksAndCommas();
        if (in->AtEnd() || in->Peek() == ';')
            return in->Fail("expected => and a class name");
    } while (!in->AtArrow());
    in->Take('=');
    in->Take('>');
    in->SkipBlanks();
    if (!in->ReadIdentifier(kClassNameGrammar, rule.class_name))
        return false;
    in->SkipBlanks();
    if (!in->AtEnd() && in->Peek() != ';')
        return in->Fail("expected ; or the end after class name \"%s\" (letters, digits, _, $ and -)",
                        rule.class_name);
    map->rules[map->count++] = rule;
    return true;
}

// ---- Matching ----

bool NetworkContains(const Address &network, uint8_t prefix_bits, const Address &address) noexcept
{
    if (network.family == AddressFamily::kNone)
        return true;
    if (network.family != address.family)
        return false;
    if (network.family == AddressFamily::kLocal)
        return true;

    Address masked = address;
    ClearHostBits(&masked, prefix_bits);
    return memcmp(masked.bytes, network.bytes, FamilyBits(network.family) / 8u) == 0;
}

bool PatternMatches(const ClassMap &map, uint16_t offset, const char *value) noexcept
{
    return offset == 0 || GlobMatches(map.arena + offset, value != nullptr ? value : "");
}

// Steps over one character: a byte, and the UTF-8 continuation bytes that follow it.
const char *NextCharacter(const char *text) noexcept
{
    text++;
    while ((static_cast<unsigned char>(*text) & 0xc0) == 0x80)
        text++;
    return text;
}

} // namespace

bool ParseClassMap(const char *text, ClassMap *out, ParseError *error) noexcept
{
    SpecReader in(text, error);

    *out = {};
    out->arena_used = 1; // offset 0 says that there is no pattern
    for (in.SkipBlanks(); !in.AtEnd(); in.SkipBlanks()) {
        if (!ParseRule(&in, out)) {
            *out = {};
            return false;
        }
        in.Take(';');
    }
    return true;
}

const char *MatchClass(const ClassMap &map, const SessionIdentity &session) noexcept
{
    const Address address = UnmapV4(session.address);

    for (uint32_t i = 0; i < map.count; i++) {
        const ClassRule &rule = map.rules[i];
        if (NetworkContains(rule.network, rule.prefix_bits, address) &&
            PatternMatches(map, rule.role, session.role) &&
            PatternMatches(map, rule.database, session.database) &&
            PatternMatches(map, rule.application_name, session.application_name))
            return rule.class_name;
    }
    return nullptr;
}

bool UsesApplicationName(const ClassMap &map) noexcept
{
    for (uint32_t i = 0; i < map.count; i++) {
        if (map.rules[i].application_name != 0)
            return true;
    }
    return false;
}

// Only the latest star is ever gone back to: whatever an earlier one could absorb, the latest can as well. So
// nothing is tried twice, and the cost is bounded by the product of the lengths instead of growing
// exponentially with the stars.
bool GlobMatches(const char *pattern, const char *text) noexcept
{
    const char *after_star = nullptr;
    const char *star_text = nullptr; // what the latest star absorbs ends here

    while (*text != '\0') {
        if (*pattern == '*') {
            after_star = ++pattern;
            star_text = text;
        } else if (*pattern == '?') {
            pattern++;
            text = NextCharacter(text);
        } else if (*pattern == *text) {
            pattern++;
            text++;
        } else if (after_star != nullptr) {
            pattern = after_star;
            text = ++star_text;
        } else {
            return false;
        }
    }
    while (*pattern == '*')
        pattern++;
    return *pattern == '\0';
}

} // namespace weir

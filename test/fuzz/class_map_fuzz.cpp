// weir.class_map under random text, and under random sessions: the limits hold, errors point into the text,
// and a match is a rule's class.
//
// Input: the setting, NUL, role, NUL, database, NUL, application_name, NUL, then a family and 16 bytes of
// address; what is missing is empty.

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

#include "admission/class_map.hpp"

using namespace weir;

namespace
{

// Not assert(): it must hold in every build.
void Require(bool condition)
{
    if (!condition)
        abort();
}

void CheckError(const ParseError &error, size_t length)
{
    Require(error.position <= length);
    Require(memchr(error.message, '\0', sizeof(error.message)) != nullptr);
    Require(error.message[0] != '\0');
    for (const char *c = error.message; *c != '\0'; c++)
        Require(*c >= ' ' && *c <= '~');
}

void CheckPattern(const ClassMap &map, uint16_t offset)
{
    Require(offset < map.arena_used);
    Require(memchr(map.arena + offset, '\0', map.arena_used - offset) != nullptr);
}

void CheckMap(const ClassMap &map)
{
    Require(map.count <= kMaxClassRules);
    Require(map.arena_used >= 1 && map.arena_used <= kPatternArenaSize);
    for (uint32_t i = 0; i < map.count; i++) {
        const ClassRule &rule = map.rules[i];
        CheckPattern(map, rule.role);
        CheckPattern(map, rule.database);
        CheckPattern(map, rule.application_name);
        Require(rule.prefix_bits <= (rule.network.family == AddressFamily::kV4 ? 32 : 128));
        Require(rule.class_name[0] != '\0');
        Require(memchr(rule.class_name, '\0', sizeof(rule.class_name)) != nullptr);
    }
}

std::string TakeField(std::string *rest)
{
    const std::string field = rest->c_str();

    rest->erase(0, field.size() + 1); // past the end: all there is
    return field;
}

Address TakeAddress(const std::string &rest)
{
    Address address = {};

    if (!rest.empty())
        address.family = static_cast<AddressFamily>(static_cast<uint8_t>(rest[0]) % 4);
    for (size_t i = 0; i < sizeof(address.bytes) && i + 1 < rest.size(); i++)
        address.bytes[i] = static_cast<uint8_t>(rest[i + 1]);
    return address;
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    std::string rest(reinterpret_cast<const char *>(data), size);
    const std::string text = TakeField(&rest);
    ClassMap map;
    ParseError error;

    if (!ParseClassMap(text.c_str(), &map, &error)) {
        Require(map.count == 0);
        CheckError(error, text.size());
        return 0;
    }
    CheckMap(map);

    const std::string role = TakeField(&rest);
    const std::string database = TakeField(&rest);
    const std::string application_name = TakeField(&rest);
    const char *name =
        MatchClass(map, {role.c_str(), database.c_str(), application_name.c_str(), TakeAddress(rest)});
    bool found = name == nullptr;
    for (uint32_t i = 0; i < map.count; i++)
        found = found || name == map.rules[i].class_name;
    Require(found);

    // Without rules about it, the application name changes nothing.
    if (!UsesApplicationName(map))
        Require(MatchClass(map, {role.c_str(), database.c_str(), nullptr, TakeAddress(rest)}) == name);
    return 0;
}

#include "admission/class_spec.hpp"

#include <cstring>

#include "pure_only.hpp"

namespace weir
{

namespace
{

struct NumberKey {
    const char *name;
    uint32_t ClassSpec::*member;
    uint32_t min;
    uint32_t max;
};

constexpr NumberKey kNumberKeys[] = {
    {"weight", &ClassSpec::weight, 1, kMaxClassWeight},
    {"reserved", &ClassSpec::reserved, 0, kMaxSpecCount},
    {"max_active", &ClassSpec::max_active, 0, kMaxSpecCount},
    {"queue_size", &ClassSpec::queue_size, 0, kMaxSpecCount},
    {"max_startups", &ClassSpec::max_startups, 0, kMaxSpecCount},
    {"startup_rate", &ClassSpec::startup_rate, 0, kMaxSpecCount},
    {"startup_burst", &ClassSpec::startup_burst, 0, kMaxSpecCount},
};
constexpr size_t kNumberKeyCount = sizeof(kNumberKeys) / sizeof(kNumberKeys[0]);

constexpr char kSettings[] =
    "weight, reserved, max_active, queue_timeout, queue_size, max_startups, startup_rate or startup_burst";

struct TimeUnit {
    const char *name;
    uint64_t ms;
};

// PostgreSQL's own, without us. A bare number is milliseconds.
constexpr TimeUnit kTimeUnits[] = {
    {"", 1}, {"ms", 1}, {"s", 1000}, {"min", 60 * 1000}, {"h", 3600 * 1000}, {"d", 24 * 3600 * 1000},
};

// One value as it stands in the text: up to a blank, comma, semicolon or the end.
struct ValueToken {
    const char *text;
    size_t length;
    uint32_t position;
};

ValueToken ReadValue(SpecReader *in) noexcept
{
    ValueToken value = {in->Here(), 0, in->Position()};

    while (!in->AtEnd() && !SpecReader::IsBlank(in->Peek()) && in->Peek() != ',' && in->Peek() != ';') {
        in->Advance();
        value.length++;
    }
    return value;
}

// Reads the digits at the start of a value and returns how many there are. A number beyond UINT32_MAX stays
// beyond it.
size_t LeadingNumber(const ValueToken &value, uint64_t *number) noexcept
{
    size_t digits = 0;

    *number = 0;
    while (digits < value.length && value.text[digits] >= '0' && value.text[digits] <= '9') {
        if (*number <= UINT32_MAX)
            *number = *number * 10 + static_cast<uint64_t>(value.text[digits] - '0');
        digits++;
    }
    return digits;
}

bool ParseNumber(SpecReader *in, const NumberKey &key, ClassSpec *spec) noexcept
{
    const ValueToken value = ReadValue(in);
    uint64_t number;
    const size_t digits = LeadingNumber(value, &number);

    if (digits == 0 || digits != value.length || number < key.min || number > key.max)
        return in->FailAt(value.position, "expected a whole number from %u to %u for %s", key.min, key.max,
                          key.name);
    spec->*key.member = static_cast<uint32_t>(number);
    return true;
}

bool ParseTimeout(SpecReader *in, ClassSpec *spec) noexcept
{
    const ValueToken value = ReadValue(in);
    uint64_t number;
    const size_t digits = LeadingNumber(value, &number);

    for (const TimeUnit &unit : kTimeUnits) {
        const size_t length = strlen(unit.name);
        if (digits == 0 || value.length - digits != length ||
            memcmp(value.text + digits, unit.name, length) != 0)
            continue;
        if (number > static_cast<uint64_t>(INT32_MAX) / unit.ms)
            break;
        spec->queue_timeout_ms = static_cast<uint32_t>(number * unit.ms);
        spec->queue_timeout_set = true;
        return true;
    }
    return in->FailAt(value.position,
                      "expected a whole number with unit ms (or none), s, min, h or d, from 0 to %d ms, for "
                      "queue_timeout",
                      INT32_MAX);
}

// Reads `key = value`. `seen` has a bit for each key that this class was already given.
bool ParseSetting(SpecReader *in, ClassSpec *spec, uint32_t *seen) noexcept
{
    const uint32_t key_at = in->Position();
    char key[kClassNameSize];
    size_t index = 0;

    if (!in->ReadIdentifier(kSettings, key))
        return false;
    while (index < kNumberKeyCount && strcmp(kNumberKeys[index].name, key) != 0)
        index++;
    if (index == kNumberKeyCount && strcmp(key, "queue_timeout") != 0)
        return in->FailAt(key_at, "unknown setting \"%.24s\": expected %s", key, kSettings);
    if (*seen & (1u << index))
        return in->FailAt(key_at, "%s is given twice for class \"%s\"", key, spec->name);
    *seen |= 1u << index;

    in->SkipBlanks();
    if (!in->Take('='))
        return in->Fail("expected = after %s", key);
    in->SkipBlanks();
    return index == kNumberKeyCount ? ParseTimeout(in, spec) : ParseNumber(in, kNumberKeys[index], spec);
}

// The default class has its place whether it is listed or not.
bool HasRoomFor(const ClassSpecs &specs, const char *name) noexcept
{
    const bool listed = FindClassSpec(specs, kDefaultClassName) != nullptr;

    return strcmp(name, kDefaultClassName) == 0 || specs.count < kMaxClasses - (listed ? 0 : 1);
}

// Reads `name: settings`, up to the `;` or the end of the text.
bool ParseEntry(SpecReader *in, ClassSpecs *out) noexcept
{
    const uint32_t name_at = in->Position();
    ClassSpec spec = {};
    uint32_t seen = 0;

    if (!in->ReadIdentifier(kClassNameGrammar, spec.name))
        return false;
    if (FindClassSpec(*out, spec.name) != nullptr)
        return in->FailAt(name_at, "class \"%s\" is listed twice", spec.name);
    if (!HasRoomFor(*out, spec.name))
        return in->FailAt(name_at, "expected at most %u classes, the default class included", kMaxClasses);
    in->SkipBlanks();
    if (!in->Take(':'))
        return in->Fail("expected : after class name \"%s\" (letters, digits, _, $ and -)", spec.name);

    spec.weight = 1;
    for (in->SkipBlanksAndCommas(); !in->AtEnd() && in->Peek() != ';'; in->SkipBlanksAndCommas()) {
        if (!ParseSetting(in, &spec, &seen))
            return false;
    }
    out->specs[out->count++] = spec;
    return true;
}

} // namespace

bool ParseClassSpecs(const char *text, ClassSpecs *out, ParseError *error) noexcept
{
    SpecReader in(text, error);

    *out = {};
    for (in.SkipBlanks(); !in.AtEnd(); in.SkipBlanks()) {
        if (!ParseEntry(&in, out)) {
            *out = {};
            return false;
        }
        in.Take(';');
    }
    return true;
}

bool ParseClassName(const char *text, char (&name)[kClassNameSize], ParseError *error) noexcept
{
    SpecReader in(text, error);

    name[0] = '\0';
    in.SkipBlanks();
    if (in.AtEnd())
        return true;
    if (!in.ReadIdentifier(kClassNameGrammar, name)) {
        name[0] = '\0';
        return false;
    }
    in.SkipBlanks();
    if (!in.AtEnd()) {
        name[0] = '\0';
        return in.Fail("expected one class name alone (letters, digits, _, $ and -)");
    }
    return true;
}

const ClassSpec *FindClassSpec(const ClassSpecs &specs, const char *name) noexcept
{
    for (uint32_t i = 0; i < specs.count; i++) {
        if (strcmp(specs.specs[i].name, name) == 0)
            return &specs.specs[i];
    }
    return nullptr;
}

ClassSpecs SpecsOfTransactions(const ClassSpecs &specs) noexcept
{
    ClassSpecs result = specs;
    for (uint32_t i = 0; i < result.count; i++) {
        ClassSpec &spec = result.specs[i];
        spec.max_startups = spec.startup_rate = spec.startup_burst = 0;
    }
    return result;
}

ClassSpecs SpecsOfStartups(const ClassSpecs &specs) noexcept
{
    ClassSpecs result = specs;
    for (uint32_t i = 0; i < result.count; i++) {
        ClassSpec &spec = result.specs[i];
        spec.max_active = spec.max_startups;
        spec.reserved = spec.queue_size = 0;
        spec.queue_timeout_set = false;
    }
    // One entry is the default class's, listed or not.
    const uint32_t room = FindClassSpec(specs, kDefaultClassName) == nullptr ? kMaxClasses - 1 : kMaxClasses;
    if (result.count < room && FindClassSpec(specs, kFailedLoginClassName) == nullptr) {
        ClassSpec &failed = result.specs[result.count++];
        failed = ClassSpec();
        memcpy(failed.name, kFailedLoginClassName, sizeof(kFailedLoginClassName));
        failed.weight = 1;
    }
    return result;
}

uint32_t TotalReserved(const ClassSpecs &specs) noexcept
{
    uint32_t total = 0;

    for (uint32_t i = 0; i < specs.count; i++)
        total += specs.specs[i].reserved;
    return total;
}

} // namespace weir

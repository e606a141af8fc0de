// weir.classes and weir.class under random text: whatever is read, the limits hold and errors point into the
// text.

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

#include "admission/class_spec.hpp"

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

void CheckSpec(const ClassSpec &spec)
{
    Require(spec.name[0] != '\0' && memchr(spec.name, '\0', sizeof(spec.name)) != nullptr);
    Require(spec.weight >= 1 && spec.weight <= kMaxClassWeight);
    for (const uint32_t number : {spec.reserved, spec.max_active, spec.queue_size, spec.max_startups,
                                  spec.startup_rate, spec.startup_burst})
        Require(number <= kMaxSpecCount);
    Require(spec.queue_timeout_ms <= INT32_MAX);
    Require(spec.queue_timeout_set || spec.queue_timeout_ms == 0);
}

void FuzzSpecs(const std::string &text)
{
    ClassSpecs specs;
    ParseError error;

    if (!ParseClassSpecs(text.c_str(), &specs, &error)) {
        Require(specs.count == 0);
        CheckError(error, text.size());
        return;
    }
    Require(specs.count <= kMaxClasses);
    Require(specs.count < kMaxClasses || FindClassSpec(specs, kDefaultClassName) != nullptr);
    Require(TotalReserved(specs) <= kMaxClasses * kMaxSpecCount);
    for (uint32_t i = 0; i < specs.count; i++) {
        CheckSpec(specs.specs[i]);
        Require(FindClassSpec(specs, specs.specs[i].name) == &specs.specs[i]); // so names are unique
    }
}

void FuzzName(const std::string &text)
{
    char name[kClassNameSize];
    char again[kClassNameSize];
    ParseError error;

    if (!ParseClassName(text.c_str(), name, &error)) {
        Require(name[0] == '\0');
        CheckError(error, text.size());
        return;
    }
    Require(ParseClassName(name, again, &error) && strcmp(name, again) == 0);
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const std::string bytes(reinterpret_cast<const char *>(data), size);
    const std::string text = bytes.c_str(); // a setting ends at its first NUL

    FuzzSpecs(text);
    FuzzName(text);
    return 0;
}

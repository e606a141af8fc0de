// The file of throttle rules under random bytes: whatever is accepted is possible, and is written again as
// the same bytes. The checksum is set right, so that the rest is reached.

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

#include "replicas/throttle_rules.hpp"

using namespace weir;

namespace
{

// Not assert(): it must hold in every build.
void Require(bool condition)
{
    if (!condition)
        abort();
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static ThrottleRuleSpec specs[kMaxThrottleRules];
    static char again[kThrottleFileMaxSize];
    std::string file(reinterpret_cast<const char *>(data), size);
    uint32_t count = 99;

    if (size >= sizeof(uint32_t)) {
        const uint32_t sum = Crc32c(file.data(), size - sizeof(sum));
        memcpy(&file[size - sizeof(sum)], &sum, sizeof(sum));
    }
    if (ReadThrottleFile(file.data(), size, specs, &count) != nullptr) {
        Require(count == 0);
        return 0;
    }
    static ThrottleRules rules;
    for (uint32_t i = 0; i < count; i++) {
        Require(memchr(specs[i].pattern, '\0', kThrottleAppSize) != nullptr && specs[i].pattern[0] != '\0');
        Require(specs[i].ratio >= 0 && specs[i].ratio <= 1);
        rules.Set(specs[i], 0);
        rules.Find(specs[i].pattern, 0);
    }
    for (uint32_t i = 0; i < count; i++)
        rules.Drop(specs[i].pattern);
    Require(WriteThrottleFile(specs, count, again) == size && memcmp(again, file.data(), size) == 0);
    return 0;
}

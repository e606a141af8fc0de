// The file of query rules under random bytes: whatever is accepted is possible, has unique queries, and is
// written again as the same bytes. The checksum is set right, so that the rest is reached.

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>

#include "admission/query_rules.hpp"

using namespace weir;

namespace
{

// Not assert(): it must hold in every build.
void Require(bool condition)
{
    if (!condition)
        abort();
}

void CheckSpecs(const QueryRuleSpec *specs, uint32_t count)
{
    static QueryRulesShared rules;
    new (&rules) QueryRulesShared();
    for (uint32_t i = 0; i < count; i++) {
        const QueryRuleSpec &spec = specs[i];
        Require(spec.query_id != 0 && spec.max_active <= kMaxRuleActive);
        Require(spec.reason_length <= kMaxRuleReason && spec.expires_at > spec.created_at);
        Require(memchr(spec.reason, '\0', spec.reason_length) == nullptr);
        Require(!MayHaveRule(rules, spec.query_id) && SetRule(&rules, spec));
    }
    for (uint32_t i = 0; i < count; i++)
        Require(MayHaveRule(rules, specs[i].query_id));
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static QueryRuleSpec specs[kMaxQueryRules];
    static char again[kRuleFileMaxSize];
    std::string file(reinterpret_cast<const char *>(data), size);
    uint32_t count = 99;

    if (size >= sizeof(uint32_t)) {
        const uint32_t sum = Crc32c(file.data(), size - sizeof(sum));
        memcpy(&file[size - sizeof(sum)], &sum, sizeof(sum));
    }
    if (ReadRuleFile(file.data(), size, specs, &count) != nullptr) {
        Require(count == 0);
        return 0;
    }
    CheckSpecs(specs, count);
    Require(WriteRuleFile(specs, count, again) == size && memcmp(again, file.data(), size) == 0);
    return 0;
}

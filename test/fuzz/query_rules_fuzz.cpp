// The file of query rules under random bytes: whatever is accepted is possible, has unique queries, and is
// written again as the same bytes. The checksum is one that always matches, so that the rest is reached.

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#include "admission/query_rules.hpp"

using namespace weir;

namespace
{

uint32_t sum_of_file;

uint32_t SumOf(const void *, size_t)
{
    return sum_of_file;
}

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
    const auto *bytes = reinterpret_cast<const char *>(data);
    uint32_t count = 99;

    if (size >= sizeof(sum_of_file))
        memcpy(&sum_of_file, bytes + size - sizeof(sum_of_file), sizeof(sum_of_file));
    if (ReadRuleFile(bytes, size, SumOf, specs, &count) != nullptr) {
        Require(count == 0);
        return 0;
    }
    CheckSpecs(specs, count);
    Require(WriteRuleFile(specs, count, SumOf, again) == size && memcmp(again, bytes, size) == 0);
    return 0;
}

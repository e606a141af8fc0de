#include "admission/rule_file.hpp"

#include <cstring>

#include "pure_only.hpp"

namespace weir
{

// Bit by bit: 60 kB at most, when a rule changes.
uint32_t Crc32c(const char *bytes, size_t size) noexcept
{
    constexpr uint32_t kPolynomial = 0x82F63B78; // reflected
    uint32_t crc = UINT32_MAX;
    for (size_t i = 0; i < size; i++) {
        crc ^= static_cast<uint8_t>(bytes[i]);
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ ((crc & 1) != 0 ? kPolynomial : 0);
    }
    return ~crc;
}

size_t WriteRecords(const RuleFileFormat &format, const void *records, uint32_t count, char *out) noexcept
{
    size_t size = 0;
    const auto put = [&](const void *data, size_t length) {
        memcpy(out + size, data, length);
        size += length;
    };
    put(format.magic, sizeof(format.magic));
    put(&format.version, sizeof(format.version));
    put(&count, sizeof(count));
    if (count > 0) // without rules, records may be null, which memcpy() must not see
        put(records, static_cast<size_t>(count) * format.record_size);
    const uint32_t sum = Crc32c(out, size);
    put(&sum, sizeof(sum));
    return size;
}

const char *ReadRecords(const RuleFileFormat &format, const char *bytes, size_t size, void *out,
                        uint32_t *count) noexcept
{
    uint32_t version;
    uint32_t claimed;
    uint32_t sum;
    *count = 0;
    if (size < RuleFileSize(format.record_size, 0))
        return "it is too short";
    if (memcmp(bytes, format.magic, sizeof(format.magic)) != 0)
        return format.other;
    memcpy(&version, bytes + sizeof(format.magic), sizeof(version));
    if (version != format.version)
        return "it is of a version that this pg_weir does not know";
    memcpy(&claimed, bytes + sizeof(format.magic) + sizeof(version), sizeof(claimed));
    if (claimed > format.most)
        return "it claims more rules than there can be";
    if (size != RuleFileSize(format.record_size, claimed))
        return "its length does not fit its number of rules";
    memcpy(&sum, bytes + size - sizeof(sum), sizeof(sum));
    if (sum != Crc32c(bytes, size - sizeof(sum)))
        return "its checksum does not match";
    memcpy(out, bytes + kRuleFileHeaderSize, static_cast<size_t>(claimed) * format.record_size);
    *count = claimed;
    return nullptr;
}

} // namespace weir

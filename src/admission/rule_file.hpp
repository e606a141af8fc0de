#pragma once

// A file of rules that survive a restart, whatever they are:
//     magic[8] version:u32 count:u32  count * record  crc:u32
// in the machine's byte order; the CRC-32C covers all before it.
//
// Pure: no PostgreSQL header, no clock, no system call.

#include <cstddef>
#include <cstdint>

namespace weir
{

struct RuleFileFormat {
    char magic[8];
    const char *other; // what is wrong with a file that begins otherwise
    uint32_t version;
    uint32_t record_size; // of trivially copyable records without padding
    uint32_t most;        // records
};

constexpr size_t kRuleFileHeaderSize = 16;

constexpr size_t RuleFileSize(size_t record_size, size_t count) noexcept
{
    return kRuleFileHeaderSize + count * record_size + sizeof(uint32_t);
}

// The checksum of iSCSI (RFC 3720, appendix B.4), as in PostgreSQL's own files. Not the server's function:
// where it is built for SSE 4.2 alone, version 18's header for it is not C++.
uint32_t Crc32c(const char *bytes, size_t size) noexcept;

// Returns the size of what it wrote: RuleFileSize().
size_t WriteRecords(const RuleFileFormat &format, const void *records, uint32_t count, char *out) noexcept;

// Null: `out`, which has room for format.most, has the records, *count of them; whether they make sense is
// the caller's question. Otherwise what is wrong with the file, and *count is 0.
const char *ReadRecords(const RuleFileFormat &format, const char *bytes, size_t size, void *out,
                        uint32_t *count) noexcept;

} // namespace weir

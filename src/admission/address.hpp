#pragma once

// Where a client comes from.
//
// Pure: no PostgreSQL header, no clock, no system call.

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace weir
{

enum class AddressFamily : uint8_t { kNone, kLocal, kV4, kV6 };

// Zeroes are kNone: not known.
struct Address {
    AddressFamily family;
    uint8_t bytes[16]; // network order; kV4 uses the first 4, kNone and kLocal none
};

static_assert(std::is_trivially_copyable_v<Address>);

constexpr size_t kAddressTextSize = 46; // the longest IPv6 address, with its NUL

// IPv4 written as IPv6 (::ffff:10.0.0.1).
bool IsMappedV4(const Address &address) noexcept;

// The same as IPv4; any other address as it is.
Address UnmapV4(const Address &address) noexcept;

// Writes the address, "local" or "unknown"; returns `text`. IPv4 written as IPv6 is written as IPv4.
const char *AddressText(const Address &address, char (&text)[kAddressTextSize]) noexcept;

} // namespace weir

#include "admission/address.hpp"

#include <arpa/inet.h>
#include <cstring>

#include "pure_only.hpp"

namespace weir
{

static_assert(kAddressTextSize >= INET6_ADDRSTRLEN);

bool IsMappedV4(const Address &address) noexcept
{
    static constexpr uint8_t kMapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

    return address.family == AddressFamily::kV6 && memcmp(address.bytes, kMapped, sizeof(kMapped)) == 0;
}

Address UnmapV4(const Address &address) noexcept
{
    if (!IsMappedV4(address))
        return address;

    Address v4 = {AddressFamily::kV4, {}};
    memcpy(v4.bytes, address.bytes + 12, 4);
    return v4;
}

const char *AddressText(const Address &address, char (&text)[kAddressTextSize]) noexcept
{
    const Address unmapped = UnmapV4(address);

    switch (unmapped.family) {
    case AddressFamily::kV4:
        inet_ntop(AF_INET, unmapped.bytes, text, kAddressTextSize);
        break;
    case AddressFamily::kV6:
        inet_ntop(AF_INET6, unmapped.bytes, text, kAddressTextSize);
        break;
    case AddressFamily::kLocal:
        memcpy(text, "local", sizeof("local"));
        break;
    default:
        memcpy(text, "unknown", sizeof("unknown"));
        break;
    }
    return text;
}

} // namespace weir

#include "admission/address.hpp"

#include <arpa/inet.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>

namespace weir
{
namespace
{

Address Make(AddressFamily family, const char *text)
{
    Address address = {family, {}};
    EXPECT_EQ(inet_pton(family == AddressFamily::kV4 ? AF_INET : AF_INET6, text, address.bytes), 1) << text;
    return address;
}

std::string Text(const Address &address)
{
    char text[kAddressTextSize];
    memset(text, 'x', sizeof(text));
    EXPECT_EQ(AddressText(address, text), text);
    return text;
}

TEST(Address, IsWrittenAsOneIsUsedToSeeIt)
{
    EXPECT_EQ(Text(Make(AddressFamily::kV4, "10.0.255.1")), "10.0.255.1");
    EXPECT_EQ(Text(Make(AddressFamily::kV6, "2001:db8::1")), "2001:db8::1");
    EXPECT_EQ(Text(Make(AddressFamily::kV6, "::")), "::");
    EXPECT_EQ(Text({AddressFamily::kLocal, {}}), "local");
    EXPECT_EQ(Text({}), "unknown");
    EXPECT_EQ(Text({static_cast<AddressFamily>(77), {}}), "unknown");
}

TEST(Address, TheLongestFits)
{
    const char *longest = "1111:2222:3333:4444:5555:6666:7777:8888";
    EXPECT_EQ(Text(Make(AddressFamily::kV6, longest)), longest);
}

TEST(Address, IPv4WrittenAsIPv6IsIPv4)
{
    const Address mapped = Make(AddressFamily::kV6, "::ffff:10.1.2.3");
    EXPECT_TRUE(IsMappedV4(mapped));
    EXPECT_EQ(Text(mapped), "10.1.2.3");
    const Address v4 = UnmapV4(mapped);
    EXPECT_EQ(v4.family, AddressFamily::kV4);
    EXPECT_EQ(memcmp(v4.bytes, "\12\1\2\3\0\0\0\0\0\0\0\0\0\0\0\0", 16), 0);

    const Address other = Make(AddressFamily::kV6, "::fffe:10.1.2.3");
    EXPECT_FALSE(IsMappedV4(other));
    EXPECT_EQ(UnmapV4(other).family, AddressFamily::kV6);
    // The bytes of an IPv4 address that look like it mean nothing.
    Address v4_with_rest = mapped;
    v4_with_rest.family = AddressFamily::kV4;
    EXPECT_FALSE(IsMappedV4(v4_with_rest));
}

} // namespace
} // namespace weir

#include "replicas/lsn_token.hpp"

#include <gtest/gtest.h>

#include <string>

namespace weir
{
namespace
{

TEST(LsnTokenTest, Reads)
{
    const struct {
        const char *text;
        LsnToken token;
    } cases[] = {{"", {0, 0}},
                 {nullptr, {0, 0}},
                 {"0/0", {0, 0}},
                 {"0/3000060", {0x3000060, 0}},
                 {"A1/b2C3", {0xA10000B2C3, 0}},
                 {"FFFFFFFF/ffffffff@4294967295", {0xffffffffffffffff, 4294967295}},
                 {"0/3000060@2", {0x3000060, 2}}};
    for (const auto &c : cases) {
        LsnToken token = {7, 7};
        ParseError error;
        EXPECT_TRUE(ParseLsnToken(c.text, &token, &error)) << error.message;
        EXPECT_EQ(token, c.token) << (c.text != nullptr ? c.text : "null");
    }
}

TEST(LsnTokenTest, RefusesAndSaysWhere)
{
    const struct {
        const char *text;
        uint32_t position;
    } cases[] = {{"/", 0},
                 {"x", 0},
                 {"0", 1},
                 {"0/", 2},
                 {" 0/1", 0},
                 {"0/1 ", 3},
                 {"0/g", 2},
                 {"123456789/0", 8},
                 {"0/123456789", 10},
                 {"0/1@", 4},
                 {"0/1@0", 5},
                 {"0/1@a", 4},
                 {"0/1@1a", 5},
                 {"0/1@4294967296", 14},
                 {"0/1@12345678901", 14},
                 {"0/1\xff", 3},
                 {"-1/1", 0}};
    for (const auto &c : cases) {
        LsnToken token;
        ParseError error;
        EXPECT_FALSE(ParseLsnToken(c.text, &token, &error)) << c.text;
        EXPECT_EQ(error.position, c.position) << c.text << ": " << error.message;
        EXPECT_NE(std::string(error.message), "");
    }
}

} // namespace
} // namespace weir

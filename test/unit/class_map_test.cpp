#include "admission/class_map.hpp"

#include <arpa/inet.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>

namespace weir
{
namespace
{

ClassMap Parse(const std::string &text)
{
    ClassMap map;
    ParseError error;

    EXPECT_TRUE(ParseClassMap(text.c_str(), &map, &error))
        << text << ": " << error.message << " at " << error.position;
    return map;
}

// `marked` is the text with a ^ where the error must point; `message` is all of what it must say.
void ExpectError(const std::string &marked, const std::string &message)
{
    const size_t position = marked.find('^');
    ASSERT_NE(position, std::string::npos) << marked;
    const std::string text = marked.substr(0, position) + marked.substr(position + 1);
    ClassMap map;
    ParseError error;

    map.count = 7;
    EXPECT_FALSE(ParseClassMap(text.c_str(), &map, &error)) << text;
    EXPECT_EQ(error.position, position) << text;
    EXPECT_EQ(error.message, message) << text;
    EXPECT_EQ(map.count, 0u) << text;
}

Address From(const char *text)
{
    Address address = {};

    if (strcmp(text, "local") == 0)
        address.family = AddressFamily::kLocal;
    else if (inet_pton(AF_INET, text, address.bytes) == 1)
        address.family = AddressFamily::kV4;
    else if (inet_pton(AF_INET6, text, address.bytes) == 1)
        address.family = AddressFamily::kV6;
    return address;
}

std::string Match(const ClassMap &map, const char *role, const char *database, const char *application,
                  const char *address = "local")
{
    const char *name = MatchClass(map, {role, database, application, From(address)});

    return name != nullptr ? name : "(none)";
}

bool AddressMatches(const std::string &pattern, const char *address)
{
    return Match(Parse("address=" + pattern + " => x"), "", "", "", address) == "x";
}

const char kKey[] = "expected role, database, application_name or address";
const char kName[] = "expected a class name (a letter or _, then letters, digits, _, $ or -)";
const char kPattern[] = "expected a pattern, such as report*, or \"\" for an empty value";
const char kAddress[] =
    "expected an IPv4 or IPv6 address or network such as 10.0.0.0/8 or fe80::/10, local, or *";

TEST(ClassMap, ReadsTheExampleOfTheManual)
{
    const ClassMap map = Parse("application_name=report* => batch; role=etl => batch; "
                               "database=crm, role=web* => interactive; address=10.0.0.0/8 => internal");

    EXPECT_EQ(map.count, 4u);
    EXPECT_EQ(Match(map, "joe", "x", "reporting"), "batch");
    EXPECT_EQ(Match(map, "etl", "x", "psql"), "batch");
    EXPECT_EQ(Match(map, "web1", "crm", "psql"), "interactive");
    EXPECT_EQ(Match(map, "web1", "erp", "psql"), "(none)");
    EXPECT_EQ(Match(map, "joe", "crm", "psql"), "(none)");
    EXPECT_EQ(Match(map, "joe", "crm", "psql", "10.9.8.7"), "internal");
}

TEST(ClassMap, NoTextIsAnEmptyMap)
{
    ClassMap map;
    ParseError error;

    EXPECT_TRUE(ParseClassMap(nullptr, &map, &error));
    EXPECT_EQ(map.count, 0u);
    EXPECT_EQ(Match(Parse(" \n"), "a", "b", "c"), "(none)");
    memset(&map, 0, sizeof(map));
    EXPECT_EQ(Match(map, "a", "b", "c"), "(none)");
    EXPECT_FALSE(UsesApplicationName(map));
}

TEST(ClassMap, TheFirstRuleThatMatchesWins)
{
    const ClassMap map = Parse("role=a* => one; role=ab* => two; role=* => three");

    EXPECT_EQ(Match(map, "abc", "", ""), "one");
    EXPECT_EQ(Match(map, "b", "", ""), "three");
}

TEST(ClassMap, BlanksAndCommasSeparateConditions)
{
    for (const char *text : {"role=a database=b=>X", "role = a,database = b => X ;",
                             "\nrole=a ,\tdatabase=b, => X\n;\n", "ROLE=\"a\"database=\"b\"=>X"}) {
        const ClassMap map = Parse(text);
        EXPECT_EQ(Match(map, "a", "b", ""), "x") << text;
        EXPECT_EQ(Match(map, "a", "c", ""), "(none)") << text;
        EXPECT_EQ(Match(map, "c", "b", ""), "(none)") << text;
    }
}

TEST(ClassMap, PatternsAreCaseSensitive)
{
    EXPECT_EQ(Match(Parse("role=Bob => x"), "Bob", "", ""), "x");
    EXPECT_EQ(Match(Parse("role=Bob => x"), "bob", "", ""), "(none)");
}

TEST(ClassMap, QuotesHoldWhatWouldEndAPattern)
{
    EXPECT_EQ(Match(Parse("application_name=\"a b,c;d => \"\"e\"\" *\" => x"), "", "", "a b,c;d => \"e\" f"),
              "x");
    EXPECT_EQ(Match(Parse("application_name=\"\" => x"), "", "", ""), "x");
    EXPECT_EQ(Match(Parse("application_name=\"\" => x"), "", "", "a"), "(none)");
    EXPECT_EQ(Match(Parse("application_name=\"\"\"\" => x"), "", "", "\""), "x");
    EXPECT_EQ(Match(Parse("address=\"10.0.0.0/8\" => x"), "", "", "", "10.1.1.1"), "x");
}

TEST(ClassMap, ABarePatternMayHoldAnEqualsSign)
{
    EXPECT_EQ(Match(Parse("application_name=a=b=>x"), "", "", "a=b"), "x");
}

TEST(ClassMap, ANullStringIsEmpty)
{
    EXPECT_EQ(Match(Parse("role=* => x"), nullptr, nullptr, nullptr), "x");
    EXPECT_EQ(Match(Parse("role=? => x"), nullptr, nullptr, nullptr), "(none)");
}

TEST(ClassMap, KnowsWhetherTheApplicationNameMatters)
{
    EXPECT_FALSE(UsesApplicationName(Parse("")));
    EXPECT_FALSE(UsesApplicationName(Parse("role=a => x; address=* => y")));
    EXPECT_TRUE(UsesApplicationName(Parse("role=a => x; role=b application_name=c => y")));
}

TEST(ClassMap, CopiesMeanTheSame)
{
    ClassMap copy;
    {
        ClassMap map = Parse("role=a, database=b => x");
        memcpy(&copy, &map, sizeof(copy));
        memset(&map, 0xff, sizeof(map));
    }
    EXPECT_EQ(Match(copy, "a", "b", ""), "x");
}

TEST(ClassMap, RulesWithoutAConditionAreRefused)
{
    for (const char *text : {"^=> x", "^;", "role=a => x; ^;", "^, role=a => x", "role=a => x;^=> y", "^*"})
        ExpectError(text, kKey);
    ExpectError("role=a, ^user=b => x",
                "unknown key \"user\": expected role, database, application_name or address");
    ExpectError("^" + std::string(64, 'k') + "=a => x", std::string(kKey) + " of at most 63 bytes");
    ExpectError("^" + std::string(63, 'k') + "=a => x",
                "unknown key \"" + std::string(24, 'k') +
                    "\": expected role, database, application_name or address");
}

TEST(ClassMap, ConditionsWithoutAPatternAreRefused)
{
    ExpectError("role^", "expected = and a pattern after role");
    ExpectError("role ^=> x", "expected = and a pattern after role");
    ExpectError("database ^a => x", "expected = and a pattern after database");
    for (const char *text :
         {"role=^", "role= ^=> x", "role=^, database=b => x", "role=^; database=b => x", "address=^=>x"})
        ExpectError(text, kPattern);
}

TEST(ClassMap, QuotesMustBeClosedAndAroundAll)
{
    ExpectError("database=b role=^\"a => x", "expected a closing \" for this pattern");
    ExpectError("role=^\"a\"\" => x", "expected a closing \" for this pattern");
    ExpectError("role=^\"", "expected a closing \" for this pattern");
    ExpectError("role=a^\"b\" => x",
                "expected double quotes around the whole pattern, and \"\" for a quote in it");
}

TEST(ClassMap, ARuleAsksEachThingOnce)
{
    ExpectError("role=a, ^role=b => x", "role is given twice in one rule: write two rules to match either");
    ExpectError("address=* ^Address=local => x",
                "address is given twice in one rule: write two rules to match either");
}

TEST(ClassMap, RulesEndInAClassName)
{
    ExpectError("role=a^", "expected => and a class name");
    ExpectError("role=a ^; role=b => x", "expected => and a class name");
    ExpectError("role=a => ^", kName);
    ExpectError("role=a => ^;", kName);
    ExpectError("role=a => ^1x", kName);
    ExpectError("role=a =>^" + std::string(64, 'x'), std::string(kName) + " of at most 63 bytes");
    ExpectError("role=a => x ^role=b => y",
                "expected ; or the end after class name \"x\" (letters, digits, _, $ and -)");
    ExpectError("role=a => x^, ",
                "expected ; or the end after class name \"x\" (letters, digits, _, $ and -)");
}

std::string ManyRules(uint32_t count)
{
    std::string text;

    for (uint32_t i = 0; i < count; i++)
        text += "role=r" + std::to_string(i) + " => c" + std::to_string(i) + ";";
    return text;
}

TEST(ClassMap, ThereIsRoomFor64Rules)
{
    const ClassMap map = Parse(ManyRules(64));

    EXPECT_EQ(map.count, 64u);
    EXPECT_EQ(Match(map, "r63", "", ""), "c63");
    ExpectError(ManyRules(64) + " ^role=a => x", "expected at most 64 rules");
}

TEST(ClassMap, PatternsFillTheArenaToTheLastByte)
{
    const std::string message = "expected at most 4095 bytes of patterns, counting one more for each";
    const std::string full(4094, 'a');
    const ClassMap map = Parse("role=" + full + " => x");

    EXPECT_EQ(map.arena_used, kPatternArenaSize);
    EXPECT_EQ(Match(map, full.c_str(), "", ""), "x");
    ExpectError("role=^" + full + "a => x", message);
    ExpectError("role=^" + full + "aaa => x", message);
    ExpectError("role=^\"" + full + "a\" => x", message);
    ExpectError("role=" + full + ", database=^\"\" => x", message);
    ExpectError("role=" + full + ", address=^* => x", message);
}

TEST(ClassMap, AnAddressIsNotKeptAsText)
{
    EXPECT_EQ(Parse("address=10.0.0.0/8 => x; address=* => y").arena_used, 1u);
}

TEST(ClassMapAddress, NetworksMatchToTheirLastBit)
{
    EXPECT_TRUE(AddressMatches("10.0.0.0/8", "10.255.255.255"));
    EXPECT_FALSE(AddressMatches("10.0.0.0/8", "11.0.0.0"));
    EXPECT_TRUE(AddressMatches("192.168.4.0/22", "192.168.7.255"));
    EXPECT_FALSE(AddressMatches("192.168.4.0/22", "192.168.8.0"));
    EXPECT_FALSE(AddressMatches("192.168.4.0/22", "192.168.3.255"));
    EXPECT_TRUE(AddressMatches("10.0.0.1", "10.0.0.1"));
    EXPECT_TRUE(AddressMatches("10.0.0.1/32", "10.0.0.1"));
    EXPECT_FALSE(AddressMatches("10.0.0.1", "10.0.0.0"));
    EXPECT_TRUE(AddressMatches("10.0.0.0/31", "10.0.0.1"));
    EXPECT_FALSE(AddressMatches("10.0.0.0/31", "10.0.0.2"));
    EXPECT_TRUE(AddressMatches("128.0.0.0/1", "255.0.0.1"));
    EXPECT_FALSE(AddressMatches("128.0.0.0/1", "127.255.255.255"));
    EXPECT_TRUE(AddressMatches("fe80::/10", "febf::1"));
    EXPECT_FALSE(AddressMatches("fe80::/10", "fec0::1"));
    EXPECT_TRUE(AddressMatches("::1/128", "::1"));
    EXPECT_FALSE(AddressMatches("::1", "::2"));
    EXPECT_TRUE(AddressMatches("2001:db8::/127", "2001:db8::1"));
    EXPECT_FALSE(AddressMatches("2001:db8::/127", "2001:db8::2"));
}

TEST(ClassMapAddress, AWholeFamilyIsOnlyThatFamily)
{
    EXPECT_TRUE(AddressMatches("0.0.0.0/0", "203.0.113.9"));
    EXPECT_FALSE(AddressMatches("0.0.0.0/0", "::1"));
    EXPECT_FALSE(AddressMatches("0.0.0.0/0", "local"));
    EXPECT_TRUE(AddressMatches("::/0", "2001:db8::1"));
    EXPECT_FALSE(AddressMatches("::/0", "10.0.0.1"));
    EXPECT_FALSE(AddressMatches("::/0", "local"));
    EXPECT_FALSE(AddressMatches("10.0.0.0/8", "a00::"));
}

TEST(ClassMapAddress, LocalAndAny)
{
    EXPECT_TRUE(AddressMatches("local", "local"));
    EXPECT_FALSE(AddressMatches("local", "127.0.0.1"));
    for (const char *address : {"local", "127.0.0.1", "::1", "unknown"})
        EXPECT_TRUE(AddressMatches("*", address)) << address;
    for (const char *pattern : {"local", "0.0.0.0/0", "::/0"})
        EXPECT_FALSE(AddressMatches(pattern, "unknown")) << pattern;
}

TEST(ClassMapAddress, MappedIpv4IsIpv4OnBothSides)
{
    EXPECT_TRUE(AddressMatches("10.0.0.0/8", "::ffff:10.1.2.3"));
    EXPECT_FALSE(AddressMatches("10.0.0.0/8", "::ffff:11.1.2.3"));
    EXPECT_FALSE(AddressMatches("::/0", "::ffff:10.1.2.3"));
    EXPECT_TRUE(AddressMatches("::ffff:10.0.0.0/104", "10.1.2.3"));
    EXPECT_FALSE(AddressMatches("::ffff:10.0.0.0/104", "11.1.2.3"));
    EXPECT_TRUE(AddressMatches("::ffff:10.0.0.1", "10.0.0.1"));
    EXPECT_TRUE(AddressMatches("::ffff:0.0.0.0/96", "1.2.3.4"));
}

TEST(ClassMapAddress, WhatIsNoneIsRefused)
{
    for (const char *text : {"10.0.0", "10.0.0.256", "010.0.0.1", "10.0.0.1.2", ":::", "fe80::1%eth0",
                             "host.example", "LOCAL", "10.*", "/8", "local/8", "1:2:3:4:5:6:7:8:9",
                             "1111:2222:3333:4444:5555:6666:7777:8888:9999:aaaa:bbbb"})
        ExpectError(std::string("address=^") + text + " => x", kAddress);
    ExpectError("address=\"^10.0.0\" => x", kAddress);
    ExpectError("address=\"^\" => x", kAddress);
}

TEST(ClassMapAddress, NetworkLengthsHaveARange)
{
    for (const char *bits : {"33", "128", "", "-1", "8x", "1000", "4294967304", "255.0.0.0"})
        ExpectError(std::string("address=10.0.0.0/^") + bits + " => x",
                    "expected a network length from 0 to 32");
    for (const char *bits : {"129", "", "256"})
        ExpectError(std::string("address=::/^") + bits + " => x", "expected a network length from 0 to 128");
}

TEST(ClassMapAddress, BitsPastTheNetworkAreRefusedWithTheNetwork)
{
    ExpectError("role=a, address=^10.0.0.1/8 => x",
                "the address has bits set past its network length: did you mean 10.0.0.0/8?");
    ExpectError("address=^10.0.0.3/31 => x",
                "the address has bits set past its network length: did you mean 10.0.0.2/31?");
    ExpectError("address=^1.2.3.4/0 => x",
                "the address has bits set past its network length: did you mean 0.0.0.0/0?");
    ExpectError("address=^fe80::1/10 => x",
                "the address has bits set past its network length: did you mean fe80::/10?");
    ExpectError("address=^ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/127 => x",
                "the address has bits set past its network length: did you mean "
                "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe/127?");
    ExpectError("address=^::ffff:10.0.0.1/104 => x",
                "the address has bits set past its network length: did you mean ::ffff:10.0.0.0/104?");
}

TEST(Glob, MatchesTheWholeText)
{
    EXPECT_TRUE(GlobMatches("", ""));
    EXPECT_FALSE(GlobMatches("", "a"));
    EXPECT_FALSE(GlobMatches("a", ""));
    EXPECT_TRUE(GlobMatches("abc", "abc"));
    EXPECT_FALSE(GlobMatches("abc", "abcd"));
    EXPECT_FALSE(GlobMatches("abcd", "abc"));
    EXPECT_FALSE(GlobMatches("abc", "ABC"));
}

TEST(Glob, StarsStandForAnyBytes)
{
    EXPECT_TRUE(GlobMatches("*", ""));
    EXPECT_TRUE(GlobMatches("**", "abc"));
    EXPECT_TRUE(GlobMatches("a*", "a"));
    EXPECT_TRUE(GlobMatches("*c", "abcc"));
    EXPECT_FALSE(GlobMatches("*c", "abcd"));
    EXPECT_TRUE(GlobMatches("*ab*ba*", "xabba"));
    EXPECT_FALSE(GlobMatches("*ab*ba*", "xaba"));
    EXPECT_TRUE(GlobMatches("a*b*c", "abbcbc"));
    EXPECT_FALSE(GlobMatches("a*b*c", "acbb"));
}

TEST(Glob, AQuestionMarkIsOneCharacterOfUtf8)
{
    EXPECT_TRUE(GlobMatches("?", "a"));
    EXPECT_FALSE(GlobMatches("?", ""));
    EXPECT_FALSE(GlobMatches("?", "ab"));
    EXPECT_TRUE(GlobMatches("b?r", "b\xc3\xa4r"));
    EXPECT_FALSE(GlobMatches("b??r", "b\xc3\xa4r"));
    EXPECT_TRUE(GlobMatches("*?", "\xe2\x82\xac"));
    EXPECT_TRUE(GlobMatches("?*?", "a\xe2\x82\xac"));
    EXPECT_TRUE(GlobMatches("???", "\xf0\x9f\x98\x80"
                                   "ab"));
}

// The definition, exponential and obviously right.
bool SlowGlob(const char *pattern, const char *text)
{
    if (*pattern == '\0')
        return *text == '\0';
    if (*pattern == '*')
        return SlowGlob(pattern + 1, text) || (*text != '\0' && SlowGlob(pattern, text + 1));
    return *text != '\0' && (*pattern == '?' || *pattern == *text) && SlowGlob(pattern + 1, text + 1);
}

// The `index`-th text over `alphabet`, the shortest first.
std::string Word(uint32_t index, const std::string &alphabet)
{
    std::string word;

    for (; index > 0; index = (index - 1) / alphabet.size())
        word += alphabet[(index - 1) % alphabet.size()];
    return word;
}

TEST(Glob, AgreesWithTheDefinitionOnAllShortTexts)
{
    for (uint32_t p = 0; p < 1365; p++) {
        const std::string pattern = Word(p, "ab*?");
        for (uint32_t t = 0; t < 127; t++) {
            const std::string text = Word(t, "ab");
            ASSERT_EQ(GlobMatches(pattern.c_str(), text.c_str()), SlowGlob(pattern.c_str(), text.c_str()))
                << pattern << " against " << text;
        }
    }
}

// With naive backtracking this takes longer than the universe has existed: 4000 bytes, 2000 stars.
TEST(Glob, TheWorstPatternEndsSoon)
{
    std::string pattern;

    for (int i = 0; i < 2000; i++)
        pattern += "*a";
    EXPECT_FALSE(GlobMatches((pattern + "b").c_str(), std::string(4000, 'a').c_str()));
    EXPECT_FALSE(GlobMatches(("*" + std::string(2000, 'a') + "b").c_str(), std::string(4000, 'a').c_str()));
    EXPECT_TRUE(GlobMatches(pattern.c_str(), std::string(4000, 'a').c_str()));
}

} // namespace
} // namespace weir

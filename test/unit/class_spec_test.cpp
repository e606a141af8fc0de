#include "admission/class_spec.hpp"

#include <gtest/gtest.h>

#include <string>

namespace weir
{
namespace
{

ClassSpecs Parse(const std::string &text)
{
    ClassSpecs specs;
    ParseError error;

    EXPECT_TRUE(ParseClassSpecs(text.c_str(), &specs, &error)) << text << ": " << error.message;
    return specs;
}

// `marked` is the text with a ^ where the error must point; `message` is all of what it must say.
void ExpectError(const std::string &marked, const std::string &message)
{
    const size_t position = marked.find('^');
    ASSERT_NE(position, std::string::npos) << marked;
    const std::string text = marked.substr(0, position) + marked.substr(position + 1);
    ClassSpecs specs;
    ParseError error;

    specs.count = 7;
    EXPECT_FALSE(ParseClassSpecs(text.c_str(), &specs, &error)) << text;
    EXPECT_EQ(error.position, position) << text;
    EXPECT_EQ(error.message, message) << text;
    EXPECT_EQ(specs.count, 0u) << text;
}

uint32_t TimeoutOf(const std::string &value)
{
    const ClassSpecs specs = Parse("a: queue_timeout=" + value);

    EXPECT_TRUE(specs.specs[0].queue_timeout_set);
    return specs.specs[0].queue_timeout_ms;
}

const char kName[] = "expected a class name (a letter or _, then letters, digits, _, $ or -)";
const char kKeys[] = "weight, reserved, max_active, queue_timeout, queue_size, max_startups, startup_rate or "
                     "startup_burst";
const char kTimeout[] =
    "expected a whole number with unit ms (or none), s, min, h or d, from 0 to 2147483647 ms, for "
    "queue_timeout";

TEST(ClassSpec, ReadsTheExampleOfTheManual)
{
    const ClassSpecs specs =
        Parse("interactive: weight=8 reserved=2; batch: weight=1 max_active=4 queue_timeout=5min");

    ASSERT_EQ(specs.count, 2u);
    EXPECT_STREQ(specs.specs[0].name, "interactive");
    EXPECT_EQ(specs.specs[0].weight, 8u);
    EXPECT_EQ(specs.specs[0].reserved, 2u);
    EXPECT_EQ(specs.specs[0].max_active, 0u);
    EXPECT_FALSE(specs.specs[0].queue_timeout_set);
    EXPECT_STREQ(specs.specs[1].name, "batch");
    EXPECT_EQ(specs.specs[1].weight, 1u);
    EXPECT_EQ(specs.specs[1].max_active, 4u);
    EXPECT_TRUE(specs.specs[1].queue_timeout_set);
    EXPECT_EQ(specs.specs[1].queue_timeout_ms, 300000u);
}

TEST(ClassSpec, NoTextListsNoClass)
{
    ClassSpecs specs;
    ParseError error;

    EXPECT_TRUE(ParseClassSpecs(nullptr, &specs, &error));
    EXPECT_EQ(specs.count, 0u);
    EXPECT_EQ(Parse("").count, 0u);
    EXPECT_EQ(Parse(" \t\r\n ").count, 0u);
}

TEST(ClassSpec, WhatIsNotGivenHasItsDefault)
{
    const ClassSpecs specs = Parse("a:");

    ASSERT_EQ(specs.count, 1u);
    const ClassSpec &a = specs.specs[0];
    EXPECT_EQ(a.weight, 1u);
    EXPECT_EQ(a.reserved + a.max_active + a.queue_size + a.max_startups + a.startup_rate + a.startup_burst,
              0u);
    EXPECT_FALSE(a.queue_timeout_set);
    EXPECT_EQ(a.queue_timeout_ms, 0u);
}

TEST(ClassSpec, EveryKeyReachesItsOwnField)
{
    const ClassSpecs specs =
        Parse("a: weight=2 reserved=3 max_active=4 queue_timeout=5 queue_size=6 max_startups=7 "
              "startup_rate=8 startup_burst=9");
    const ClassSpec &a = specs.specs[0];

    EXPECT_EQ(a.weight, 2u);
    EXPECT_EQ(a.reserved, 3u);
    EXPECT_EQ(a.max_active, 4u);
    EXPECT_EQ(a.queue_timeout_ms, 5u);
    EXPECT_EQ(a.queue_size, 6u);
    EXPECT_EQ(a.max_startups, 7u);
    EXPECT_EQ(a.startup_rate, 8u);
    EXPECT_EQ(a.startup_burst, 9u);
}

TEST(ClassSpec, BlanksCommasAndATrailingSemicolonDoNotMatter)
{
    const ClassSpecs specs = Parse("\n  a :\tweight = 3 , reserved=1,max_active=2 ;\n  b:,;\n");

    ASSERT_EQ(specs.count, 2u);
    EXPECT_EQ(specs.specs[0].weight, 3u);
    EXPECT_EQ(specs.specs[0].reserved, 1u);
    EXPECT_EQ(specs.specs[0].max_active, 2u);
    EXPECT_STREQ(specs.specs[1].name, "b");
}

TEST(ClassSpec, NamesAndKeysAreFoldedAsInSql)
{
    const ClassSpecs specs = Parse("Inter-Active$1: WEIGHT=3; _x:");

    EXPECT_STREQ(specs.specs[0].name, "inter-active$1");
    EXPECT_EQ(specs.specs[0].weight, 3u);
    EXPECT_NE(FindClassSpec(specs, "_x"), nullptr);
    EXPECT_EQ(FindClassSpec(specs, "Inter-Active$1"), nullptr);
    EXPECT_EQ(FindClassSpec(specs, ""), nullptr);
}

TEST(ClassSpec, ANameHasAtMost63Bytes)
{
    EXPECT_EQ(std::string(Parse(std::string(63, 'a') + ":").specs[0].name), std::string(63, 'a'));
    ExpectError("b:; ^" + std::string(64, 'a') + ":", std::string(kName) + " of at most 63 bytes");
}

TEST(ClassSpec, RangesIncludeTheirEnds)
{
    EXPECT_EQ(Parse("a: weight=1").specs[0].weight, 1u);
    EXPECT_EQ(Parse("a: weight=1000").specs[0].weight, 1000u);
    EXPECT_EQ(Parse("a: reserved=262143").specs[0].reserved, 262143u);
    EXPECT_EQ(Parse("a: max_active=0").specs[0].max_active, 0u);
    EXPECT_EQ(Parse("a: max_active=007").specs[0].max_active, 7u);
}

TEST(ClassSpec, NumbersOutsideTheirRangeAreRefused)
{
    const std::string weight = "expected a whole number from 1 to 1000 for weight";

    for (const char *value :
         {"0", "1001", "-1", "+1", "1.5", "8x", "x", "4294967297", "18446744073709551617", "0x10"})
        ExpectError(std::string("a: weight=^") + value + " reserved=1", weight);
    ExpectError("a: weight=^", weight);
    ExpectError("a: weight=^;", weight);
    ExpectError("a: weight= ^, reserved=1", weight);
    for (const char *key :
         {"reserved", "max_active", "queue_size", "max_startups", "startup_rate", "startup_burst"})
        ExpectError(std::string("a: ") + key + "=^262144",
                    std::string("expected a whole number from 0 to 262143 for ") + key);
}

TEST(ClassSpec, TimeoutsHavePostgresUnits)
{
    EXPECT_EQ(TimeoutOf("0"), 0u);
    EXPECT_EQ(TimeoutOf("250"), 250u);
    EXPECT_EQ(TimeoutOf("250ms"), 250u);
    EXPECT_EQ(TimeoutOf("30s"), 30000u);
    EXPECT_EQ(TimeoutOf("5min"), 300000u);
    EXPECT_EQ(TimeoutOf("24h"), 86400000u);
    EXPECT_EQ(TimeoutOf("24d"), 2073600000u);
    EXPECT_EQ(TimeoutOf("2147483647"), 2147483647u);
    EXPECT_EQ(TimeoutOf("2147483s"), 2147483000u);
}

TEST(ClassSpec, TimeoutsThatAreNoneAreRefused)
{
    for (const char *value : {"2147483648", "2147484s", "25d", "99999999999999999999d", "-1", "5us", "5m",
                              "5MIN", "min", "1.5s", "5minutes", "s5"})
        ExpectError(std::string("a: queue_timeout=^") + value, kTimeout);
    ExpectError("a: queue_timeout=^", kTimeout);
    ExpectError("a: queue_timeout=5 ^min", std::string("unknown setting \"min\": expected ") + kKeys);
}

TEST(ClassSpec, UnknownKeysAreRefusedWithTheKnownOnes)
{
    ExpectError("a: ^wait=1", std::string("unknown setting \"wait\": expected ") + kKeys);
    ExpectError("a: weight=1, ^b: weight=2", std::string("unknown setting \"b\": expected ") + kKeys);
    ExpectError("a: ^*=1", std::string("expected ") + kKeys);
    ExpectError("a: ^=1", std::string("expected ") + kKeys);
    ExpectError("a: ^\xc3\xa9", std::string("expected ") + kKeys);
    ExpectError("a: ^" + std::string(63, 'k') + "=1",
                "unknown setting \"" + std::string(24, 'k') + "\": expected " + kKeys);
}

TEST(ClassSpec, AKeyWithoutAValueIsRefused)
{
    ExpectError("a: weight^", "expected = after weight");
    ExpectError("a: weight ^8", "expected = after weight");
    ExpectError("a: queue_timeout^: 8", "expected = after queue_timeout");
}

TEST(ClassSpec, NothingMayBeGivenTwice)
{
    ExpectError("a: weight=1 ^weight=1", "weight is given twice for class \"a\"");
    ExpectError("a: queue_timeout=1 ^Queue_Timeout=1", "queue_timeout is given twice for class \"a\"");
    ExpectError("a:; b:; ^A: weight=1", "class \"a\" is listed twice");
    ExpectError("default:; ^default:", "class \"default\" is listed twice");
}

TEST(ClassSpec, EntriesWithoutANameOrColonAreRefused)
{
    for (const char *text :
         {"^;", "a:; ^; b:", "^: weight=1", "^1a:", "^-a:", "^$a:", "a:;^,", "^\"a\":", "^\xff"})
        ExpectError(text, kName);
    ExpectError("a^", "expected : after class name \"a\" (letters, digits, _, $ and -)");
    ExpectError("a ^weight=1", "expected : after class name \"a\" (letters, digits, _, $ and -)");
    ExpectError("b^\xc3\xbcro: weight=1", "expected : after class name \"b\" (letters, digits, _, $ and -)");
}

std::string ManyClasses(int count)
{
    std::string text;

    for (int i = 0; i < count; i++)
        text += "c" + std::to_string(i) + ": weight=" + std::to_string(i + 1) + ";";
    return text;
}

TEST(ClassSpec, ThereIsRoomFor31ClassesBesideTheDefault)
{
    const std::string message = "expected at most 32 classes, the default class included";

    EXPECT_EQ(Parse(ManyClasses(31)).count, 31u);
    EXPECT_EQ(Parse(ManyClasses(31) + "default:").count, 32u);
    EXPECT_EQ(Parse("default:;" + ManyClasses(31)).count, 32u);
    EXPECT_EQ(Parse(ManyClasses(31)).specs[30].weight, 31u);
    ExpectError(ManyClasses(31) + "^x:", message);
    ExpectError("default:;" + ManyClasses(31) + "^x:", message);
    ExpectError(ManyClasses(31) + "default:; ^x:", message);
}

TEST(ClassSpec, ReservedSlotsAddUp)
{
    EXPECT_EQ(TotalReserved(Parse("")), 0u);
    EXPECT_EQ(TotalReserved(Parse("a: reserved=2; b:; c: reserved=262143")), 262145u);
}

// Whatever was parsed can be written down again and means the same.
TEST(ClassSpec, RoundTrip)
{
    const ClassSpecs first = Parse("default: queue_timeout=0; B: weight=7 queue_timeout=1h queue_size=9");
    std::string text;

    for (uint32_t i = 0; i < first.count; i++) {
        const ClassSpec &s = first.specs[i];
        text += std::string(s.name) + ": weight=" + std::to_string(s.weight) +
                " queue_size=" + std::to_string(s.queue_size);
        if (s.queue_timeout_set)
            text += " queue_timeout=" + std::to_string(s.queue_timeout_ms);
        text += ";\n";
    }
    const ClassSpecs second = Parse(text);
    ASSERT_EQ(second.count, 2u);
    EXPECT_STREQ(second.specs[1].name, "b");
    EXPECT_EQ(second.specs[1].weight, 7u);
    EXPECT_EQ(second.specs[1].queue_timeout_ms, 3600000u);
    EXPECT_EQ(second.specs[1].queue_size, 9u);
    EXPECT_TRUE(second.specs[0].queue_timeout_set);
    EXPECT_EQ(second.specs[0].queue_timeout_ms, 0u);
}

TEST(ClassName, StandsAlone)
{
    char name[kClassNameSize];
    ParseError error;

    EXPECT_TRUE(ParseClassName("  Batch\n", name, &error));
    EXPECT_STREQ(name, "batch");
    EXPECT_TRUE(ParseClassName(" ", name, &error));
    EXPECT_STREQ(name, "");
    EXPECT_TRUE(ParseClassName(nullptr, name, &error));
    EXPECT_STREQ(name, "");
}

TEST(ClassName, RefusesWhatIsNone)
{
    char name[kClassNameSize];
    ParseError error;

    EXPECT_FALSE(ParseClassName("a b", name, &error));
    EXPECT_EQ(error.position, 2u);
    EXPECT_STREQ(error.message, "expected one class name alone (letters, digits, _, $ and -)");
    EXPECT_STREQ(name, "");
    EXPECT_FALSE(ParseClassName(" 1", name, &error));
    EXPECT_EQ(error.position, 1u);
    EXPECT_STREQ(error.message, kName);
    EXPECT_FALSE(ParseClassName(std::string(64, 'x').c_str(), name, &error));
    EXPECT_EQ(error.position, 0u);
    EXPECT_STREQ(name, "");
}

} // namespace
} // namespace weir

// A unit of weir.submit() in a request's payload.

#include "coalesce/submit_request.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>
#include <vector>

namespace
{

using namespace weir;

constexpr size_t kRoom = 512;

struct Texts {
    std::string settings = std::string("TimeZone\0UTC\0", 13);
    std::string sql = "INSERT INTO t VALUES ($1, $2, $3)";
    std::string key = "key";
    std::vector<UnitParameter> parameters = {{"1", 1}, {nullptr, 0}, {"", 0}};

    Unit Of(bool with_key) const
    {
        return {7,
                settings.data(),
                static_cast<uint32_t>(settings.size()),
                sql.c_str(),
                static_cast<uint32_t>(sql.size()),
                with_key ? key.c_str() : nullptr,
                static_cast<uint32_t>(key.size()),
                parameters.data(),
                static_cast<uint32_t>(parameters.size())};
    }
};

TEST(SubmitRequest, ArrivesAsItWasSent)
{
    const Texts texts;
    for (const bool with_key : {false, true}) {
        char payload[kRoom];
        ASSERT_TRUE(PackUnit(texts.Of(with_key), payload, kRoom));
        Unit unit;
        std::vector<UnitParameter> parameters(kMaxUnitParameters);
        ASSERT_TRUE(ReadUnit(payload, kRoom, &unit, parameters.data()));
        EXPECT_EQ(unit.role, 7u);
        EXPECT_EQ(std::string(unit.settings, unit.settings_size), texts.settings);
        EXPECT_STREQ(unit.sql, texts.sql.c_str());
        EXPECT_EQ(unit.sql_size, texts.sql.size());
        if (with_key)
            EXPECT_STREQ(unit.key, "key");
        else
            EXPECT_EQ(unit.key, nullptr);
        ASSERT_EQ(unit.parameter_count, 3u);
        EXPECT_STREQ(unit.parameters[0].text, "1");
        EXPECT_EQ(unit.parameters[1].text, nullptr);
        EXPECT_STREQ(unit.parameters[2].text, "");
    }
}

TEST(SubmitRequest, TheAnswerLeavesTheRestAlone)
{
    const Texts texts;
    char payload[kRoom];
    ASSERT_TRUE(PackUnit(texts.Of(true), payload, kRoom));
    EXPECT_EQ(UnitRows(payload), 0);
    SetUnitRows(payload, int64_t{1} << 40);
    EXPECT_EQ(UnitRows(payload), int64_t{1} << 40);
    Unit unit;
    std::vector<UnitParameter> parameters(kMaxUnitParameters);
    ASSERT_TRUE(ReadUnit(payload, kRoom, &unit, parameters.data()));
    EXPECT_STREQ(unit.sql, texts.sql.c_str());
}

TEST(SubmitRequest, WhatDoesNotFitIsSaidSo)
{
    const Texts texts;
    char payload[kRoom];
    size_t least = 0;
    while (least < kRoom && !PackUnit(texts.Of(true), payload, least))
        least++;
    ASSERT_GT(least, texts.sql.size());
    ASSERT_LT(least, kRoom);
    // Not a byte beyond what it was given.
    std::vector<char> exact(least);
    ASSERT_TRUE(PackUnit(texts.Of(true), exact.data(), exact.size()));
    Unit unit;
    std::vector<UnitParameter> parameters(kMaxUnitParameters + 1);
    EXPECT_TRUE(ReadUnit(exact.data(), exact.size(), &unit, parameters.data()));
    EXPECT_FALSE(ReadUnit(exact.data(), exact.size() - 1, &unit, parameters.data()));

    Unit many = texts.Of(false);
    parameters.assign(kMaxUnitParameters + 1, {nullptr, 0});
    many.parameters = parameters.data();
    many.parameter_count = kMaxUnitParameters + 1;
    std::vector<char> large(100000);
    EXPECT_FALSE(PackUnit(many, large.data(), large.size()));
    many.parameter_count = kMaxUnitParameters;
    EXPECT_TRUE(PackUnit(many, large.data(), large.size()));
}

// Whatever is in the payload, nothing beyond it is read: the sanitizers watch.
TEST(SubmitRequest, GarbageIsReadOrRefused)
{
    std::mt19937 random(1);
    const Texts texts;
    std::vector<UnitParameter> parameters(kMaxUnitParameters);
    for (int i = 0; i < 20000; i++) {
        std::vector<char> payload(kRoom);
        ASSERT_TRUE(PackUnit(texts.Of(true), payload.data(), payload.size()));
        for (int j = 0; j < 4; j++)
            payload[random() % 160] = static_cast<char>(random());
        Unit unit;
        if (!ReadUnit(payload.data(), payload.size(), &unit, parameters.data()))
            continue;
        ASSERT_EQ(strnlen(unit.sql, kRoom), strlen(unit.sql));
        for (uint32_t k = 0; k < unit.parameter_count; k++)
            ASSERT_TRUE(unit.parameters[k].text == nullptr ||
                        unit.parameters[k].text[unit.parameters[k].size] == '\0');
    }
}

} // namespace
